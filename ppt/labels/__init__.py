"""Pseudo labels: noun phrases, similarity maps, points, candidate masks and the referent."""
