"""Data sets: one file for each format, with its configuration and its source."""
