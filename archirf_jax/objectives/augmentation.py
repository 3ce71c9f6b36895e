"""Differentiable augmentation of what a discriminator sees (Zhao et al. 2020, Sec. 3.2 and appendix)."""

from __future__ import annotations

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp

SHIFT = 0.125  # largest translation, as a share of a side
CUT = 0.5  # side of what is cut out, as a share of a side


def color(images: jax.Array, chance: jax.Array) -> jax.Array:
    """Brightness, then saturation, then contrast: images (B, H, W, C) and chance (B, 3) in [0, 1).

    Brightness adds chance - 1/2; saturation multiplies the distance from each pixel's mean over the channels by
    2 chance; contrast that from the image's mean by chance + 1/2.
    """
    brightness, saturation, contrast = jnp.moveaxis(chance, 1, 0)[..., None, None, None]
    images = images + brightness - 0.5
    grey = jnp.mean(images, axis=-1, keepdims=True)
    images = grey + (images - grey) * 2 * saturation
    mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    return mean + (images - mean) * (contrast + 0.5)


def translation(images: jax.Array, chance: jax.Array) -> jax.Array:
    """Images (B, H, W, C) moved by whole pixels, zeros behind them.

    Chance (B, 2) in [0, 1) goes down and right from -SHIFT to SHIFT of the side; 1/2 moves nothing.
    """
    shape = images.shape[1:3]
    most = [int(side * SHIFT + 0.5) for side in shape]

    def one(image: jax.Array, chance: jax.Array) -> jax.Array:
        padded = jnp.pad(image, [(pixels, pixels) for pixels in most] + [(0, 0)])
        starts = [2 * m - jnp.floor(u * (2 * m + 1)).astype(jnp.int32) for m, u in zip(most, chance, strict=True)]
        return jax.lax.dynamic_slice(padded, (*starts, 0), image.shape)

    return jax.vmap(one)(images, chance)


def cutout(images: jax.Array, chance: jax.Array) -> jax.Array:
    """Images (B, H, W, C) with zeros in a rectangle of CUT of each side, whose middle chance (B, 2) in [0, 1) places.

    What of it lies beyond the image cuts nothing.
    """
    inside = []
    for axis, side in enumerate(images.shape[1:3]):
        length = int(side * CUT + 0.5)
        start = jnp.floor(chance[:, axis, None] * (side + 1 - length % 2)) - length // 2
        place = jnp.arange(side) - start
        inside.append((place >= 0) & (place < length))
    cut = inside[0][:, :, None] & inside[1][:, None, :]
    return jnp.where(cut[..., None], 0, images)


KINDS: dict[str, tuple[int, Callable[[jax.Array, jax.Array], jax.Array]]] = {
    "color": (3, color),
    "translation": (2, translation),
    "cutout": (2, cutout),
}
NUMBERS = sum(count for count, _ in KINDS.values())  # that an image is augmented by


def augmented(images: jax.Array, chance: jax.Array, kinds: Collection[str]) -> jax.Array:
    """Images (B, H, W, C) in [-1, 1], each by its own numbers; gradients pass to the images.

    Args:
        images: real or made.
        chance: (B, NUMBERS) uniform in [0, 1).
        kinds: names of KINDS; they act in their order there.
    """
    used = 0
    for name, (count, augment) in KINDS.items():
        if name in kinds:
            images = augment(images, chance[:, used : used + count])
        used += count
    return images
