"""The logarithm of the loss that a network expects at each time, beside what it answers: a network around any other.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", Sec. 2.2.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.models import layers

FEATURES = 128
SEED = 0  # of the features, which are constants of the architecture


class Uncertain(nn.Module):
    """A network and one channel more, which holds u(t) in every pixel; u is 0 before training.

    Attributes:
        network: any (x, t, y) -> (B, H, W, C').
        time_scale: what network times are divided by, so that u is smooth over differences of about 1.
    """

    network: nn.Module
    time_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        """x (B, H, W, C), network times t (B,), conditions y -> (B, H, W, C' + 1) float32."""
        output = self.network(x, t, y)
        # Called neither kernel nor bias: weight decay would pull the expected loss to 1.
        weight = self.param("weight", layers.zeros, (FEATURES,))
        u = fourier_features(t / self.time_scale) @ weight / FEATURES**0.5
        channel = jnp.broadcast_to(u[:, None, None, None], (*output.shape[:-1], 1))
        return jnp.concatenate([output, channel], axis=-1)


def fourier_features(t: jax.Array) -> jax.Array:
    """(B,) -> (B, FEATURES) float32: cosines of mean square 1, of normally distributed frequencies, in any phase."""
    frequencies, phases = _waves()
    return 2**0.5 * jnp.cos(t.astype(jnp.float32)[:, None] * frequencies + phases)


@functools.cache
def _waves() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(SEED)
    frequencies, phases = 2 * np.pi * random.normal(size=FEATURES), 2 * np.pi * random.uniform(size=FEATURES)
    return frequencies.astype(np.float32), phases.astype(np.float32)
