"""Files at the end of a training: its losses, its sample grids, the last samples on their way, a task's own plots."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from archirf_jax.contracts import Frozen, Task, TrainState
from archirf_jax.training.writers import read_losses, read_metrics
from archirf_jax.visuals import pictures, plots


def figures(task: Task, state: TrainState, frozen: Frozen, workdir: pathlib.Path) -> dict[str, Any]:
    """A task's own matplotlib figures by name, of the last state and of the rows of metrics; {} where it makes none."""
    plots_of = getattr(task, "plots", None)
    return dict(plots_of(state, frozen, read_metrics(workdir))) if plots_of else {}


def write(frames: np.ndarray | None, made: Mapping[str, Any], workdir: pathlib.Path, names: Sequence[str] = ()) -> None:
    """Write loss.png, progress.gif, denoising.gif, and NAME.png of each figure.

    Args:
        frames: (frames, rows, columns, H, W, C) uint8; None = nothing to see.
        made: see `figures`.
        workdir: the run directory.
        names: of the rows of frames.
    """
    plots.save_loss(*read_losses(workdir), workdir / "loss.png")
    for name, figure in made.items():
        plots.save(figure, workdir / f"{name}.png")
    grids = [grid for path in sorted((workdir / "samples").glob("[0-9]*.png")) for grid in _load(path)]
    if grids:
        pictures.save_gif(grids, workdir / "progress.gif")
    if frames is not None:
        pictures.save_gif([pictures.grid(frame, names) for frame in frames], workdir / "denoising.gif")


def _load(path: pathlib.Path) -> list[np.ndarray]:
    """A list with the image of a file; empty where it cannot be read."""
    try:
        return [pictures.load_png(path)]
    except OSError as e:
        logging.warning("%s is left out of progress.gif: %s", path, e)
        return []
