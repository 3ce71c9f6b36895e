"""Latents as pictures, and figures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST, COLUMNS = 64, 8  # channels of the histograms, and of a row of them
BINS = 41
# Panels over time: what the axis is called -> the metrics that are its lines.
PANELS: dict[str, tuple[str, ...]] = {
    "standard deviation": ("latent/std", "latent/std_least", "latent/std_largest"),
    "share beyond the bound": ("latent/saturated",),
    "gain": ("latent_gain",),
    "divergence, nats": ("kl",),
    "share of codes used": ("codebook_usage",),
    "logits": ("discriminator/real", "discriminator/fake"),
}


def as_images(z: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Latents (N, h, w, D) as (N, H, W, C) uint8: their first C principal components, over all of them.

    Args:
        z: float.
        shape: (H, W, C) of the images; each place of a latent becomes a block of pixels.
    """
    height, width, channels = shape
    values = z.reshape(-1, z.shape[-1]).astype(np.float64)
    values = values - values.mean(axis=0)
    _, _, axes = np.linalg.svd(values.T @ values)
    axes = axes * np.sign(axes[np.arange(len(axes)), np.argmax(np.abs(axes), axis=1)])[:, None]  # else signs flicker
    parts = np.zeros((len(values), channels))
    shown = min(channels, z.shape[-1])
    parts[:, :shown] = values @ axes[:shown].T
    spread = np.maximum(2.5 * parts.std(axis=0), 1e-12)
    levels = np.clip(127.5 * (1 + parts / spread), 0, 255).round().astype(np.uint8).reshape(*z.shape[:3], channels)
    rows, columns = np.arange(height) * z.shape[1] // height, np.arange(width) * z.shape[2] // width
    return levels[:, rows][:, :, columns]


def histograms(z: np.ndarray) -> Any:
    """A matplotlib figure with the histogram of each channel of latents (N, h, w, D), its mean and deviation above it.

    All share their axes. Of more than MOST channels the first are shown; values that are not finite are left out.
    """
    from matplotlib.figure import Figure

    values = z.reshape(-1, z.shape[-1]).astype(np.float64)
    shown = values[:, :MOST]
    finite = shown[np.isfinite(shown)]
    edges = np.histogram_bin_edges(finite if finite.size else [0.0], BINS)
    columns = min(COLUMNS, shown.shape[1])
    rows = -(-shown.shape[1] // columns)
    figure = Figure(figsize=(max(1.5 * columns, 5), 1.4 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in panels[shown.shape[1] :]:
        panel.set_axis_off()
    for i, (panel, channel) in enumerate(zip(panels, shown.T, strict=False)):
        channel = channel[np.isfinite(channel)]
        panel.hist(channel, edges, color="C0")
        about = f"{channel.mean():.2f} $\\pm$ {channel.std():.2f}" if channel.size else "not finite"
        panel.set_title(f"{i}: {about}", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.set_yticks([])
    of = f"the first {MOST} of {z.shape[-1]} channels" if z.shape[-1] > MOST else "each channel"
    figure.suptitle(f"Latents of {len(z)} images: mean $\\pm$ standard deviation of {of}", fontsize=10)
    return figure


def shown(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[str, ...]]:
    """The PANELS of which rows of metrics hold something, with the metrics that they hold."""
    known = {name for row in rows for name in row}
    held = {label: tuple(name for name in names if name in known) for label, names in PANELS.items()}
    return {label: names for label, names in held.items() if names}


def over_time(rows: Sequence[Mapping[str, float]]) -> Any:
    """A matplotlib figure of `shown` of rows of metrics against the step, a panel each below the other."""
    from matplotlib.figure import Figure

    panels = shown(rows)
    figure = Figure(figsize=(6, 1.6 * len(panels) + 0.6), layout="constrained")
    for axes, (label, names) in zip(
        figure.subplots(len(panels), sharex=True, squeeze=False).ravel(), panels.items(), strict=True
    ):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), linewidth=1.2, label=name.rpartition("/")[2].replace("_", " "))
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize=7)
    axes.set_xlabel("step")
    figure.suptitle("Latents over the training", fontsize=10)
    return figure
