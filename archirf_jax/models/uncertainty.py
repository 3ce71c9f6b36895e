"""The logarithm of the loss that a network expects at each time: a head around any network.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", Sec. 2.2 and App. B.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from archirf_jax.contracts import Condition
from archirf_jax.models.layers import EXTRAS, takes_second_time
from archirf_jax.models.magnitude import MPDense, MPFourier, with_unit_weights


class Uncertain(nn.Module):
    """A network's answer, with u(t) sown into EXTRAS as "log_variance" (B,): of mean square about 1 before training.

    Attributes:
        network: any (x, t, condition) -> (B, ...).
        time_scale: what network times are divided by, so that u is smooth over differences of about 1.
        channels: random features of the time that u is a linear function of.
    """

    network: nn.Module
    time_scale: float = 1.0
    channels: int = 128

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition, s: jax.Array | None = None) -> jax.Array:
        """x (B, ...), network times t (B,), conditions, the time s (B,) that is led to -> the network's answer."""
        second = {"s": s} if s is not None and takes_second_time(self.network) else {}
        answer = self.network(x, t, condition, **second)
        features = MPFourier(self.channels, name="uncertainty_features")(t / self.time_scale)
        u = MPDense(1, name="uncertainty")(features)[:, 0]
        if not self.is_initializing():
            self.sow(EXTRAS, "log_variance", u)
        return answer

    @nn.nowrap
    def normalize_weights(self, params: Any) -> Any:
        """The parameters with unit weights, those of the network if it has forced weight normalization too."""
        normalize = {"uncertainty": with_unit_weights}
        if hasattr(self.network, "normalize_weights"):
            normalize["network"] = self.network.normalize_weights
        return {name: normalize[name](part) if name in normalize else part for name, part in params.items()}
