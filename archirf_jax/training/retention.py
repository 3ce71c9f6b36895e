"""Which checkpoints stay: the newest, the best by a metric, and every so many steps, whatever the combination."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from orbax.checkpoint import checkpoint_managers

Rows = Mapping[int, Mapping[str, float]]


@dataclasses.dataclass
class Lowest(checkpoint_managers.PreservationPolicy):
    """Those with the lowest values of a metric.

    Attributes:
        number: how many of them.
        metric: its name.
        rows: step -> metrics of its checkpoint; grows while it is used.
    """

    number: int
    metric: str
    rows: Rows

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each checkpoint whether it stays."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        known = [step for step in steps if self.metric in self.rows.get(step, {})]
        best = sorted(known, key=lambda step: self.rows[step][self.metric])[: self.number]
        return [step in best for step in steps]


def policy(keep: Any, rows: Rows) -> Any:
    """The policy that Orbax asks which checkpoints stay.

    Args:
        keep: how many of the newest, 0 or None for all; or `config.checkpoint`.
        rows: step -> metrics of its checkpoint.
    """
    if keep is None or isinstance(keep, int):
        return checkpoint_managers.LatestN(keep or None)
    policies = [checkpoint_managers.LatestN(keep.keep), Lowest(keep.keep_best, keep.best_metric, rows)]
    if keep.keep_every:
        policies.append(checkpoint_managers.EveryNSteps(keep.keep_every))
    return checkpoint_managers.AnyPreservationPolicy(policies)
