"""Runs that are killed, that lose their disk, or whose files are damaged, and then go on."""
