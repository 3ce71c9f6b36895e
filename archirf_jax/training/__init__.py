"""Training: the one loop, state, optimizers, averages, checkpoints, signals and writers."""
