"""A network alone, which is not trained: encoders and distances that other runs name as frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from archirf_jax.contracts import Batch, Frozen, Losses, Metrics, TrainState
from archirf_jax.errors import UserError
from archirf_jax.tasks import building


class NetworkAlone:
    """Attributes:
    model, module: the network of `config.model`; its parameters are those of the module "model".
    """

    main = "model"  # the module that is exported
    use = ""  # nothing is sampled from it

    def __init__(self, config: Any, runs: building.Runs) -> None:
        self.frozen = dict(runs)
        self.updates: Mapping[str, Any] = {}
        self.model = self.module = building.make_model(config)

    def init(self, key: jax.Array, frozen: Frozen) -> TrainState:
        """Refuses: raises a UserError."""
        raise self._refused()

    def losses(
        self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array, network: str, train: bool = True
    ) -> tuple[Any, Losses]:
        """Refuses: raises a UserError."""
        raise self._refused()

    def step(self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Refuses: raises a UserError."""
        raise self._refused()

    def preview(self, state: TrainState, frozen: Frozen, key: jax.Array, stride: int = 0) -> None:
        """Nothing to see."""

    def _refused(self) -> UserError:
        return UserError("task", "network", "is not trained; other runs use it by config.frozen")


def build(config: Any, runs: Mapping[str, Any]) -> NetworkAlone:
    """The task of a configuration."""
    return NetworkAlone(config, runs)
