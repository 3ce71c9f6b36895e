"""Dead codes of a codebook, and the latents that take their place (Dhariwal et al. 2020, Jukebox, Sec. 3.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def usage_after(usage: jax.Array, codes: jax.Array, decay: float) -> jax.Array:
    """The exponential moving average (N,) of how often each code occurs, in units of 1 / N: 1 = as often as the mean.

    Args:
        usage: (N,) before the batch.
        codes: indices of any shape, of the batch.
        decay: of the average.
    """
    counts = jnp.zeros(usage.shape).at[codes.ravel()].add(1.0)
    return decay * usage + (1 - decay) * counts * (len(usage) / codes.size)


def replacements(dead: jax.Array, latents: jax.Array, lottery: jax.Array) -> jax.Array:
    """A latent (N, E) for each code: those of dead codes are different ones as long as there are enough.

    Args:
        dead: (N,) which codes are.
        latents: (B, h, w, E) of the batch.
        lottery: (B, h, w) random numbers; the latents with the smallest are taken first.
    """
    order, turn = jnp.argsort(lottery.ravel()), jnp.cumsum(dead) - 1
    return latents.reshape(-1, latents.shape[-1])[order[turn % lottery.size]]
