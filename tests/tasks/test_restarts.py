"""Laws of restarting dead codes in training: a collapsed codebook comes back, and a step is whole or not at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from archirf_jax import sharding
from archirf_jax.contracts import TrainState
from archirf_jax.errors import UserError
from archirf_jax.tasks.building import make_task
from configs import autoencoder
from tests.tasks.settings import config
from tests.tasks.test_autoencoder import SMALL, untrained

FAR = 50.0
BATCH = {"image": jnp.tanh(jax.random.normal(jax.random.key(0), (8, 8, 8, 1))), "label": jnp.zeros(8, jnp.int32)}
VQ = {
    "model": {
        **{"name": "vq_model", "num_vq_embeddings": 8, "block_out_channels": (8,), "norm_num_groups": 4},
        **{"layers_per_block": 1, "mid_block_add_attention": False, "latent_channels": 2},
    }
}
ON = {**VQ, "objective.restart_below": 0.1, "objective.restart_decay": 0.5}


@functools.cache
def stepping(changes: str) -> tuple[Any, Callable[..., Any], Any]:
    """(task, its compiled step, the usage of codes at the beginning)."""
    task: Any = make_task(config(autoencoder, eval(changes), SMALL))
    usage = jax.jit(lambda: task.init(jax.random.key(0), {}).networks["model"].objective_state)()
    return task, jax.jit(task.step), usage


def collapsed(**changes: Any) -> tuple[Any, Any, TrainState]:
    """(task, its compiled step, a state in which every latent has the first code)."""
    task, step, usage = stepping(repr(changes))
    _, state = untrained(**changes)
    network = state.networks["model"]
    network = network.replace(averages={"ema": network.params}, objective_state=usage)

    def with_table(params: dict[str, Any]) -> dict[str, Any]:
        table = jnp.full_like(params["model"]["codebook"]["embedding"], FAR).at[0].set(0.3)
        return {"model": params["model"] | {"codebook": {"embedding": table}}}

    averages = {name: with_table(average) for name, average in network.averages.items()}
    network = network.replace(params=with_table(network.params), averages=averages)  # type: ignore[attr-defined]
    return task, step, state.replace(networks={"model": network})  # type: ignore[attr-defined]


def table(params: Any) -> np.ndarray:
    return np.asarray(params["model"]["codebook"]["embedding"])


@pytest.mark.slow
def test_a_collapsed_codebook_comes_back() -> None:
    """Until then nothing changes: usage of a code that is not used halves at each step, and 1/16 is below 0.1."""
    _, step, state = collapsed(**ON)
    found = []
    for i in range(6):
        if i == 3:
            assert np.all(table(state.networks["model"].params)[1:] == FAR)
        state, metrics = step(state, {}, BATCH, jax.random.key(i))
        found.append({name: float(pair[0]) for name, pair in metrics.items()})
    assert [row["codebook_restarts"] for row in found[:4]] == [0, 0, 0, 7]
    assert all(row["codebook_usage"] == 1 / 8 for row in found[:3])
    assert found[3]["codebook_usage"] == 1 / 8 and found[4]["codebook_usage"] > 1 / 2
    assert np.abs(table(state.networks["model"].params)).max() < FAR / 2


def test_without_restarts_no_usage_is_counted() -> None:
    task: Any = make_task(config(autoencoder, VQ, SMALL))
    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(task.init, key, {})
    after, metrics = jax.eval_shape(task.step, state, {}, BATCH, key)
    assert after.networks["model"].objective_state == () and "codebook_restarts" not in metrics


def test_new_codes_are_latents_of_the_batch_and_averages_and_usage_begin_with_them() -> None:
    task, step, state = collapsed(**ON)
    for i in range(3):
        state, _ = step(state, {}, BATCH, jax.random.key(i))
    before, after = state.networks["model"], step(state, {}, BATCH, jax.random.key(3))[0].networks["model"]
    latents = np.asarray(task.encode(before.params, BATCH["image"])).reshape(-1, 2)
    fresh = table(after.params)[1:]
    nearest = np.abs(fresh[:, None] - latents).max(-1)
    assert np.all(nearest.min(1) < 1e-4) and len(np.unique(nearest.argmin(1))) == 7
    assert np.array_equal(table(after.averages["ema"])[1:], fresh)
    np.testing.assert_allclose(after.objective_state["usage"][1:], 1)
    other = step(state, {}, BATCH, jax.random.key(4))[0].networks["model"]
    assert not np.array_equal(table(other.params)[1:], fresh)


def test_a_step_that_is_not_done_changes_no_usage_and_no_code() -> None:
    _, step, state = collapsed(**ON)
    state, _ = step(state, {}, BATCH, jax.random.key(0))
    network = state.networks["model"]
    almost = network.replace(objective_state={"usage": network.objective_state["usage"] * 0.1})
    state = state.replace(networks={"model": almost})
    bad = BATCH | {"image": BATCH["image"].at[0].set(jnp.nan)}
    skipped, metrics = step(state, {}, bad, jax.random.key(1))
    assert float(metrics["skipped"][0]) == 1 and not np.any(metrics["codebook_restarts"])
    for field in ("params", "averages", "opt", "objective_state"):
        pairs = [getattr(each.networks["model"], field) for each in (state, skipped)]
        assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), *pairs)), field
    done, metrics = step(state, {}, BATCH, jax.random.key(1))
    assert float(metrics["codebook_restarts"][0]) == 7


@pytest.mark.slow
def test_eight_devices_restart_the_codes_that_one_does() -> None:
    if jax.device_count() < 8:
        pytest.skip("eight devices are needed")
    _, step, state = collapsed(**ON)
    mesh = sharding.make_mesh(4, 2)
    network = state.networks["model"]
    state = state.replace(
        networks={"model": network.replace(objective_state={"usage": network.objective_state["usage"] * 0.15})}
    )
    cut = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec(sharding.AXES)))
    whole = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    results = [step(state, {}, BATCH, jax.random.key(2))[0], step(whole, {}, cut, jax.random.key(2))[0]]
    one, eight = (result.networks["model"] for result in results)
    np.testing.assert_allclose(table(eight.params), table(one.params), atol=1e-4)
    np.testing.assert_allclose(eight.objective_state["usage"], one.objective_state["usage"], rtol=1e-6)
    assert np.abs(table(one.params)).max() < FAR / 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"objective.restart_below": 0.1}, "objective.restart_below"),  # there is no codebook
        (VQ | {"objective.restart_below": 1.0}, "objective.restart_below"),
        (VQ | {"objective.restart_decay": 1.0}, "objective.restart_decay"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        make_task(config(autoencoder, changes, SMALL))
    assert caught.value.field == field
