"""Samplers: the scan driver, time grids, guidance, and a folder of solvers. Pure functions of a ModelFn."""
