"""Curves of a run."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence


def save_loss(steps: Sequence[float], losses: Sequence[float], path: pathlib.Path) -> None:
    """Plot the loss against the step as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", title="Training loss")
    axes.plot(steps, losses, linewidth=1)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
