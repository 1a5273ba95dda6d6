"""The commands, one in each module. `ppt <name>` is the same as `python -m jobs.<name>`."""
