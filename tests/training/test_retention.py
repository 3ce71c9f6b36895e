"""Which checkpoints stay: the newest, the best and every so many, over any number of restarts."""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
import ml_collections
import pytest

from archirf_jax.contracts import Network, TrainState
from archirf_jax.training.checkpoints import Checkpoints, MetricsState


def state(step: int) -> TrainState:
    params = {"n": {"w": jnp.full(2, 1.0 * step)}}
    return TrainState(jnp.int32(step), {"net": Network(params, {"ema": params}, ())})


def kept(**changes: Any) -> Any:
    fields = dict(keep=1, keep_best=0, best_metric="loss", keep_every=None) | changes
    return ml_collections.ConfigDict(fields)


@pytest.mark.parametrize(
    ("policy", "expected", "restarts"),
    [
        (kept(keep=3), [8, 7, 6], [2, 3, 7]),
        (kept(keep_every=3), [8, 6, 3], [2, 3, 7]),
        (kept(keep=2, keep_best=1, keep_every=5), [8, 7, 5, 2], []),
        (kept(keep=2, keep_best=1, keep_every=5), [8, 7, 5, 2], [2, 3, 7]),
        (kept(keep_best=2, best_metric="accuracy"), [8, 7, 1], [2, 3, 7]),
        (0, [8, 7, 6, 5, 4, 3, 2, 1], []),
    ],
)
def test_what_stays_is_the_newest_the_best_and_every_so_many(
    policy: Any, expected: list[int], restarts: list[int], tmp_path: pathlib.Path
) -> None:
    losses = {1: 0.9, 2: 0.1, 3: 0.8, 4: 0.2, 5: 0.7, 6: 0.6, 7: 0.5, 8: 0.4}
    accuracies = {1: 0.1, 7: 0.2} | {step: 0.5 + step for step in range(2, 7)} | {8: 9.0}
    checkpoints = Checkpoints(tmp_path / "c", policy)
    for step in losses:
        checkpoints.save(state(step), {}, row({"loss": losses[step], "accuracy": accuracies[step]}))
        if step in restarts:
            checkpoints.wait()
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path / "c", policy)
    checkpoints.wait()
    assert checkpoints.steps() == expected
    checkpoints.close()


def row(metrics: dict[str, float]) -> MetricsState:
    return MetricsState(metrics, {})


def test_a_save_without_the_metric_is_not_one_of_the_best(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", kept(keep_best=1))
    for step, metrics in ((1, {"loss": 0.5}), (2, {}), (3, {"loss": 0.6}), (4, {"accuracy": 1.0})):
        checkpoints.save(state(step), {}, row(metrics))
    checkpoints.wait()
    assert checkpoints.steps() == [4, 1]
    checkpoints.close()


def test_another_metric_may_choose_the_best_of_checkpoints_that_are_there(tmp_path: pathlib.Path) -> None:
    for policy, steps in ((kept(keep_best=2), (1, 2, 3)), (kept(keep_best=2, best_metric="accuracy"), (4, 5))):
        checkpoints = Checkpoints(tmp_path / "c", policy)
        for step in steps:
            checkpoints.save(state(step), {}, row({"loss": 1.0 / step, "accuracy": [9, 9, 0, 9, 5, 7][step]}))
        checkpoints.wait()
        checkpoints.close()
    assert checkpoints.steps() == [5, 4, 2]
