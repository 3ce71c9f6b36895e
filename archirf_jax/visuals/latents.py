"""Latents as pictures."""

from __future__ import annotations

import numpy as np


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
