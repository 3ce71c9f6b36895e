"""The logarithm of the loss that a network expects at each time, beside what it answers: a network around any other.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", Sec. 2.2 and App. B.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.models.magnitude import MPDense, MPFourier, with_unit_weights


class Uncertain(nn.Module):
    """A network and one channel more, which holds u(t) in every pixel: of mean square about 1 before training.

    Attributes:
        network: any (x, t, y) -> (B, H, W, C').
        time_scale: what network times are divided by, so that u is smooth over differences of about 1.
        channels: random features of the time that u is a linear function of.
    """

    network: nn.Module
    time_scale: float = 1.0
    channels: int = 128

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        """x (B, H, W, C), network times t (B,), conditions y -> (B, H, W, C' + 1) float32."""
        output = self.network(x, t, y)
        features = MPFourier(self.channels, name="uncertainty_features")(t / self.time_scale)
        u = MPDense(1, name="uncertainty")(features)  # (B, 1)
        channel = jnp.broadcast_to(u[:, None, None], (*output.shape[:-1], 1))
        return jnp.concatenate([output, channel], axis=-1)

    @nn.nowrap
    def constrained(self, params: Any) -> Any:
        """The parameters with unit weights, those of the network as far as it says how (`constrained`)."""
        laws = {"uncertainty": with_unit_weights}
        if hasattr(self.network, "constrained"):
            laws["network"] = self.network.constrained
        return {name: laws[name](part) if name in laws else part for name, part in params.items()}
