"""Processes: the mathematics of noise, one file each, found by the name of the file; each file ends in `build`."""
