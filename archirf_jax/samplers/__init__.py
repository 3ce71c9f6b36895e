"""Samplers: the scan driver, denoisers with guidance and thresholds, and folders of solvers, grids and guidance."""
