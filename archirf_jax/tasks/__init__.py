"""Tasks: the only place where models meet processes and data; one file each, found by its name."""
