"""Losses of a generator and its discriminator: hinge and logistic losses, R1, and the weight between two losses.

Logits (B, ...) are of how real an image, or each of its patches, is; a loss (B,) is each image's own mean over patches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

LARGEST, EPS = 1e4, 1e-4  # of the adaptive weight


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The discriminator's hinge loss (B,): half of max(0, 1 - real) + max(0, 1 + fake) (Lim & Ye 2017, Eq. 12)."""
    return 0.5 * (_mean(jax.nn.relu(1 - real)) + _mean(jax.nn.relu(1 + fake)))


def logistic(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The discriminator's cross-entropy (B,), halved (Goodfellow et al. 2014, Eq. 1)."""
    return 0.5 * (_mean(jax.nn.softplus(-real)) + _mean(jax.nn.softplus(fake)))


DISCRIMINATOR_LOSSES = {"hinge": hinge, "logistic": logistic}


def generator(fake: jax.Array) -> jax.Array:
    """The generator's loss (B,): the less, the more real its images look (Lim & Ye 2017, Eq. 13)."""
    return -_mean(fake)


def r1(logits: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """The squared length (B,) of the slope of each image's summed logits at it (Mescheder et al. 2018, Eq. 9).

    Neither halved nor weighed. Its gradient needs second derivatives: ask the discriminator with
    `higher_derivatives` if it attends.

    Args:
        logits: images (B, H, W, C) -> (B, ...).
        images: real ones.
    """
    slopes = jax.grad(lambda images: jnp.sum(logits(images)))(images)
    return jnp.sum(jnp.square(slopes), axis=tuple(range(1, slopes.ndim)))


def adaptive_weight(reconstruction: Any, adversarial: Any, weight: Any = 1.0) -> jax.Array:
    """What the generator's loss is multiplied by so that it pulls as hard as the reconstruction's (Esser et al. 2021,
    Eq. 7): weight * |d reconstruction| / (|d adversarial| + EPS), the quotient at most LARGEST; a constant, ().

    Args:
        reconstruction, adversarial: gradients of the two losses, means over the batch, by the last layer's kernel.
        weight: of the generator's loss.
    """
    quotient = optax.tree.norm(reconstruction) / (optax.tree.norm(adversarial) + EPS)
    return weight * jax.lax.stop_gradient(jnp.clip(quotient, 0, LARGEST))


def _mean(values: jax.Array) -> jax.Array:
    return jnp.mean(values.astype(jnp.float32), axis=tuple(range(1, values.ndim)))
