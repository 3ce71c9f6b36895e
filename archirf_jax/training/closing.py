"""Files at the end of a training: its losses, its sample grids, and the last samples on their way from noise."""

from __future__ import annotations

import pathlib

import numpy as np
from absl import logging

from archirf_jax.training.writers import read_losses
from archirf_jax.visuals import pictures, plots


def write(frames: np.ndarray | None, workdir: pathlib.Path) -> None:
    """Write loss.png, progress.gif and denoising.gif.

    Args:
        frames: (frames, rows, columns, H, W, C) uint8; None = nothing to see.
        workdir: the run directory.
    """
    plots.save_loss(*read_losses(workdir), workdir / "loss.png")
    grids = [grid for path in sorted((workdir / "samples").glob("[0-9]*.png")) for grid in _load(path)]
    if grids:
        pictures.save_gif(grids, workdir / "progress.gif")
    if frames is not None:
        pictures.save_gif([pictures.grid(frame) for frame in frames], workdir / "denoising.gif")


def _load(path: pathlib.Path) -> list[np.ndarray]:
    """A list with the image of a file; empty where it cannot be read."""
    try:
        return [pictures.load_png(path)]
    except OSError as e:
        logging.warning("%s is left out of progress.gif: %s", path, e)
        return []
