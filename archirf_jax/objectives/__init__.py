"""Losses, one a file, found by the file's name: how times and noise are drawn, and what is asked of the network."""
