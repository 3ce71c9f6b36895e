"""Curves of a run, of a range test, and of a schedule."""

from __future__ import annotations

import functools
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from archirf_jax.files import atomic_write

WIDTH = 78  # characters of a line above a plot
# Landmarks of a range test: colour and marker.
MARKS = {"steepest": ("C2", "v"), "lowest": ("C4", "o"), "edge": ("C3", "X")}


def save_loss(steps: Sequence[float], losses: Sequence[float], path: pathlib.Path) -> None:
    """Plot the loss against the step as a PNG."""
    save(loss_figure(steps, losses), path)


def loss_figure(steps: Sequence[float], losses: Sequence[float]) -> Any:
    """The loss against the step, as a matplotlib figure; no window opens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", title="Training loss")
    axes.plot(steps, losses, linewidth=1)
    axes.grid(alpha=0.3)
    return figure


def save(figure: Any, path: pathlib.Path) -> None:
    """Write a matplotlib figure as a PNG."""
    atomic_write(path, lambda file: figure.savefig(file, dpi=120, format="png"))


def save_range_test(
    rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, first: float, found: dict[str, Any], path: pathlib.Path
) -> None:
    """Plot the loss against the learning rate of a range test as a PNG.

    Args:
        rates, losses, smoothed: (N,) each.
        first: the loss before the first step.
        found: rates by name or None: "rate", which is suggested, "steepest", "lowest" and "edge"; "why": a sentence.
        path: of the file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="learning rate", ylabel="loss of the same batch and noise", xscale="log")
    axes.plot(rates, losses, linewidth=0.8, alpha=0.4, color="C0", label="after the step of each rate")
    axes.plot(rates, smoothed, linewidth=1.8, color="C0", label="smoothed")
    axes.axhline(first, linewidth=1, linestyle=":", color="grey", label="before the first step")
    for name, (color, marker) in MARKS.items():
        if found[name] is not None:
            height = np.interp(found[name], rates, smoothed)
            axes.plot(found[name], height, marker, color=color, markersize=8, label=f"{name}: {found[name]:.2g}")
    title = "No suggestion"
    if found["rate"] is not None:
        axes.axvline(found["rate"], linewidth=1.8, linestyle="--", color="C1", label=f"suggested: {found['rate']:g}")
        title = f"Suggested maximum: {found['rate']:g}"
    axes.set_title(f"{title}\n{textwrap.fill(found['why'], WIDTH)}", fontsize=10)
    axes.set_ylim(*_window(smoothed, first))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    save(figure, path)


def _window(smoothed: np.ndarray, first: float) -> tuple[float, float]:
    """The losses that are shown: what has diverged lies outside the plot."""
    heights = [height for height in (first, *smoothed) if np.isfinite(height)] or [0.0]
    low, start = min(heights), heights[0]
    room = max(start - low, 0.1 * abs(start), 1e-12)
    return low - 0.1 * room, min(max(heights), start + 0.5 * room) + 0.1 * room


def save_schedule(steps: np.ndarray, rates: np.ndarray, warmup: int, batch_size: int, path: pathlib.Path) -> None:
    """Plot the learning rate of every step as a PNG, over steps and images.

    Args:
        steps, rates: (N,) each, steps counted from 1.
        warmup: steps of warm-up.
        batch_size: images a step.
        path: of the file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="learning rate", title="Learning rate of every step")
    axes.plot(steps, rates, linewidth=1.8)
    to_images, to_steps = (functools.partial(np.multiply, factor) for factor in (batch_size, 1 / batch_size))
    above = axes.secondary_xaxis("top", functions=(to_images, to_steps))
    above.set_xlabel("images")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    above.xaxis.set_major_formatter(EngFormatter(sep=""))
    for step, rate, text in schedule_notes(steps, rates, warmup):
        low = rate < 0.5 * np.max(rates)
        left, up = step < 0.5 * steps[-1], low or text.startswith("peak")
        gap = " " if left else "\n"
        across, along = 6 if left else -6, (20 if low else 6) if up else -6
        axes.plot(step, rate, "o", color="C1")
        axes.annotate(
            f"{text}: {rate:.3g}{gap}at step {step:,}",
            (step, rate),
            xytext=(across, along),
            textcoords="offset points",
            ha="left" if left else "right",
            va="bottom" if up else "top",
            fontsize=9,
        )
    axes.set_ylim(-0.03 * np.max(rates), 1.18 * np.max(rates))
    axes.grid(alpha=0.3)
    save(figure, path)


def schedule_notes(steps: np.ndarray, rates: np.ndarray, warmup: int) -> list[tuple[int, float, str]]:
    """(step, rate, what it is) of the places that are named in a schedule's plot; arguments of `save_schedule`."""
    peak = int(np.argmax(rates >= np.max(rates) * (1 - 1e-6)))  # the first of equal ones
    places = {peak: ["peak"]}
    if 1 <= warmup <= steps[-1]:
        places.setdefault(int(np.searchsorted(steps, warmup)), []).append("end of the warm-up")
    places.setdefault(len(steps) - 1, []).append("last")
    return [(int(steps[i]), float(rates[i]), " and ".join(names)) for i, names in places.items()]
