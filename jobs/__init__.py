"""The commands: thin, one a file. `ppt <name>` is `python -m jobs.<name>`."""
