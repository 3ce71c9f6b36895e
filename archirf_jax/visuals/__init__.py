"""Pictures of a run: grids, animations and plots."""
