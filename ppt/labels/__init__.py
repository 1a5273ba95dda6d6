"""Pseudo labels: phrase -> similarity map -> points -> mask, and which of them is the referent."""
