"""Laws of beginning from another network's weights: what fits is taken bit for bit, all else is as in any training."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.contracts import TrainState
from archirf_jax.tasks.building import make_task
from archirf_jax.training import initial_weights
from archirf_jax.training.initial_weights import Fit, fit
from tests.tasks import settings

LEARNED = {"model.positions": "learned", "model.position_size": 4, "data.image_size": 8}
HEADS = {"objective": {"name": "uncertainty", "channels": 8, "condition_dropout": 0.1}}


def task(**changes: Any) -> Any:
    return make_task(settings.config(changes={"model.depth": 2} | changes))


def network(made: Any, seed: int = 0) -> Any:
    """Weights of a network after some training, which moved what begins at 0."""
    return settings.moved(jax.eval_shape(made.init_params, jax.random.key(seed), {}), seed)


@functools.cache
def drawn(made: Any) -> TrainState:
    """The state of a network of other weights before the first step."""
    state = jax.eval_shape(made.init, jax.random.key(0), {})
    return TrainState(
        np.int32(0), {"model": made.updates["model"].init(settings.moved(state.networks["model"].params, 7))}
    )


def begun(made: Any, given: Any) -> tuple[TrainState, Fit]:
    fresh = drawn(made)
    found = fit(fresh.networks["model"].params, given)
    return initial_weights.begin(made, fresh, found.taken), found


def flat(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(entry.key) for entry in path): np.asarray(leaf) for path, leaf in leaves}


def same(first: Any, second: Any) -> bool:
    ours, theirs = flat(first), flat(second)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_the_same_network_is_taken_whole_and_everything_else_begins_afresh() -> None:
    made = task()
    given = network(made)
    state, found = begun(made, given)
    kept = state.networks["model"]
    assert found.share == 1 and not (found.afresh or found.unused or found.resized)
    assert same(kept.params, given) and all(same(average, given) for average in kept.averages.values())
    as_ever = made.updates["model"].init(given)
    assert int(state.step) == 0
    assert jax.tree.all(jax.tree.map(np.array_equal, (kept.guard, kept.opt), (as_ever.guard, as_ever.opt)))


@pytest.mark.parametrize("stacked", [True, False])
def test_blocks_are_found_whether_they_are_stacked_or_not(stacked: bool) -> None:
    theirs, ours = task(**{"model.scan": stacked}), task(**{"model.scan": not stacked})
    given = network(theirs)
    state, found = begun(ours, given)
    assert found.share == 1 and not found.afresh and not found.unused
    x, t = np.ones((2, 8, 8, 1), np.float32), np.ones(2, np.float32)
    condition = {"label": np.arange(2)}
    weights = ((theirs, given), (ours, state.networks["model"].params))
    expected, answer = (jax.jit(lambda p, made=made: made.model_fn(p)(x, t, condition)[0])(p) for made, p in weights)
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


def test_a_deeper_network_takes_the_blocks_that_there_are() -> None:
    made = task(**{"model.depth": 3, "model.scan": True})
    state, found = begun(made, network(task()))
    blocks = state.networks["model"].params["model"]["blocks_0"]["mlp"]["hidden"]["kernel"]
    fresh = drawn(made).networks["model"].params["model"]["blocks_0"]["mlp"]["hidden"]["kernel"]
    assert "model/block_2/mlp/hidden/kernel" in found.afresh and "model/block_1/mlp/hidden/kernel" in found.taken
    np.testing.assert_array_equal(blocks[2], fresh[2])
    assert not np.array_equal(blocks[1], fresh[1])


def test_what_does_not_fit_is_named_and_begins_as_in_any_training() -> None:
    made = task(**{"data.num_classes": 5, "process": {"name": "ddpm", "variance": "learned_range"}})
    made = task(**{"data.num_classes": 5, "model.learn_sigma": True, "process": made.config.process.to_dict()})
    given = network(task())
    state, found = begun(made, given)
    said = " ".join(found.afresh)
    assert "label_embedding/embedding (4, 16) there, (6, 16) here" in said and "final_layer/linear/kernel" in said
    fresh, now = (flat(each.networks["model"].params) for each in (drawn(made), state))
    theirs = flat(given)
    for name in now:
        assert np.array_equal(now[name], theirs[name] if name in found.taken else fresh[name]), name
    assert 0.5 < found.share < 1 and len(found.taken) + len(found.afresh) == len(now)


@pytest.mark.parametrize("headed", [True, False])
def test_heads_that_were_trained_with_a_network_do_not_hide_it(headed: bool) -> None:
    theirs, ours = (HEADS, {}) if headed else ({}, HEADS)
    given = network(task(**theirs))
    state, found = begun(task(**ours), given)
    assert "model/block_0/mlp/hidden/kernel" in found.taken
    assert all("uncertainty" in name for name in (found.unused if headed else found.afresh))
    assert bool(found.unused) == headed and bool(found.afresh) != headed
    inner = given["model"]["network"] if headed else given["model"]
    params = state.networks["model"].params["model"]
    assert same(params if headed else params["network"], inner)


@pytest.mark.parametrize("size", [6, 8, 12])
def test_tables_of_positions_are_resized(size: int) -> None:
    given = network(task(**LEARNED))
    state, found = begun(task(**LEARNED | {"model.position_size": size // 2, "data.image_size": size}), given)
    table = state.networks["model"].params["model"]["positions"]
    assert table.shape == ((size // 2) ** 2, 16) and bool(found.resized) == (size != 8) and not found.afresh
    if size == 8:
        assert np.array_equal(table, given["model"]["positions"])


def test_resizing_keeps_constants_and_slopes() -> None:
    rows, columns = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij")
    table = np.stack([np.full((8, 8), 3.0), rows, columns], axis=-1).reshape(64, 3).astype(np.float32)
    larger = initial_weights.resized(table, 256).reshape(16, 16, 3)
    np.testing.assert_allclose(larger[..., 0], 3, atol=1e-5)
    middle = slice(4, 12)  # far from the edges, where the interpolation sees both sides
    np.testing.assert_allclose(np.diff(larger[middle, middle, 1], axis=0), 0.5, atol=0.02)
    np.testing.assert_allclose(np.diff(larger[middle, middle, 2], axis=1), 0.5, atol=0.02)


def test_a_table_of_ones_own_classes_is_not_taken() -> None:
    own = {"model": {"frozen_table": np.zeros((3, 2, 4), np.float32), "kernel": np.zeros(2, np.float32)}}
    theirs = jax.tree.map(np.ones_like, own)
    found = fit(own, theirs)
    assert list(found.taken) == ["model/kernel"] and found.afresh == ["model/frozen_table"]
