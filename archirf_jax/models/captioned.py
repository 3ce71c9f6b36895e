"""A network with a text encoder in front of it, both trained as one (Nichol et al. 2021, GLIDE, Sec. 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from archirf_jax import models, registry
from archirf_jax.contracts import Condition
from archirf_jax.models import layers

TEXT = ("ids", "mask")


class Captioned(nn.Module):
    """Attributes:
    network: takes the conditions "tokens", "mask" and, if it likes, "pooled", besides those that come without text.
    text: (ids (B, L), mask (B, L)) -> "tokens" (B, L, D) and "pooled" (B, D).
    """

    network: nn.Module
    text: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition, s: jax.Array | None = None) -> jax.Array:
        """Noisy images x (B, H, W, C) at network times t (B,) -> what the network answers.

        Args:
            x, t, s: as the network takes them.
            condition: "ids" (B, L) int32 and "mask" (B, L) bool of texts, and what else the network takes.

        Raises:
            UserError: a condition is missing, or a text is longer than the encoder takes.
        """
        ids, mask = (layers.entry(condition, name) for name in TEXT)
        encoded = self.text(ids, mask)
        others = {name: value for name, value in condition.items() if name not in TEXT}
        seen = {"tokens": encoded["tokens"], "pooled": encoded["pooled"], "mask": mask}
        more = {"s": s} if s is not None and layers.takes_second_time(self.network) else {}
        answer: jax.Array = self.network(x, t, others | seen, **more)
        return answer

    @nn.nowrap
    def condition_ranges(self) -> dict[str, tuple[float, float]]:
        """Those of the network."""
        ranges: dict[str, tuple[float, float]] = getattr(self.network, "condition_ranges", dict)()
        return ranges


def build(network: Mapping[str, Any], text: Mapping[str, Any], dtype: str = "float32") -> Captioned:
    """A network and a text encoder, each by name and fields.

    Args:
        network: of archirf_jax/models, such as {"name": "mmdit", "context": "text", ...}.
        text: likewise, such as {"name": "text_transformer", ...}.
        dtype: compute dtype of both.

    Raises:
        UserError: an unknown name, or fields that do not fit.
    """

    def part(field: str, group: Mapping[str, Any]) -> nn.Module:
        fields = dict(group)
        offered = {} if "dtype" in fields else {"dtype": dtype}
        room = (models, f"model.{field}.name", fields.pop("name", ""), fields)
        made: nn.Module = registry.build(*room, kind=nn.Module, offered=offered)
        return made

    return Captioned(part("network", network), part("text", text))
