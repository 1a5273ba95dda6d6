"""The frozen encoders, the point generator and what trains it."""
