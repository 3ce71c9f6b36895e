"""A batch in parts is the same step: losses, gradients, what is told, what is remembered, and what counts steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax import registry, tasks
from archirf_jax.data.pipeline import Batch
from archirf_jax.errors import UserError
from archirf_jax.models import attention
from archirf_jax.training.state import TrainState
from archirf_jax.training.update import Update
from configs import adm_ddpm, default, dit_ddpm, dit_rf, edm2_edm

B1 = 0.9
COMMON = {"optimizer.b1": B1, "optimizer.clip_norm": 0.0, "schedule.warmup_steps": 0, "data.num_classes": 10}
NETWORKS = {
    "dit": (dit_rf, 128, {"model.hidden_size": 24, "model.num_heads": 2, "model.depth": 1}),
    "adm": (adm_ddpm, 16, {"model.channel_mult": (1,), "model.num_res_blocks": 1, "model.attention_downsamples": ()}),
    "edm2": (edm2_edm, 16, {"model.channel_mult": (1,), "model.num_blocks": 1, "model.attention_levels": ()}),
}


def made(file: Any, **changes: Any) -> Any:
    config = file.get_config()
    with config.unlocked():
        for name, value in (COMMON | changes).items():
            group, _, field = name.rpartition(".")
            (config[group] if group else config)[field] = value
    return config


def batch(size: int) -> Batch:
    return Batch(jax.random.normal(jax.random.key(0), (size, 8, 8, 1)), jnp.arange(size, dtype=jnp.int32) % 10)


def stepped(config: Any) -> tuple[TrainState, Any]:
    """The state after a step of a network whose parameters are all random, and the step's metrics."""
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    rng, shapes = np.random.default_rng(0), jax.eval_shape(task.init_params, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes)
    state = task.update.init(params, getattr(task.process, "init_memory", tuple)())
    return jax.jit(task.step)(state, batch(config.batch_size), jax.random.key(1))


def gradient(state: TrainState) -> list[np.ndarray]:
    """Of the first step, as the first moment holds it."""
    leaves = jax.tree_util.tree_leaves_with_path(state.opt)
    return [np.asarray(leaf) / (1 - B1) for path, leaf in leaves if ".mu" in jax.tree_util.keystr(path)]


@pytest.mark.parametrize("name", NETWORKS)
def test_four_parts_are_one_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LISTENED", slice(None))  # of some images, parts would tell of others
    file, size, changes = NETWORKS[name]
    (whole, one), (parts, four) = (
        stepped(made(file, batch_size=size, accumulation=parts, **changes)) for parts in (1, 4)
    )
    assert one.keys() == four.keys() and one["loss"][0] > 0.01
    for metric in one:
        if not metric.startswith(("update_norm", "param_norm")):  # a first step of Adam is nearly a sign
            np.testing.assert_allclose(four[metric], one[metric], rtol=2e-6, atol=1e-7, err_msg=metric)
    ours, theirs = gradient(parts), gradient(whole)
    assert len(ours) == len(theirs) > 10
    longest = max(np.max(np.abs(leaf)) for leaf in theirs)
    for mine, leaf in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, leaf, atol=1e-6 * longest, rtol=0)
    moved = sum(np.sum(leaf**2) for leaf in theirs) ** 0.5
    assert one["grad_norm"][0] == pytest.approx(moved, rel=1e-5) and moved > 1e-3


def test_a_memory_of_losses_is_of_the_same_examples_in_the_same_order() -> None:
    changes = NETWORKS["dit"][2] | {
        "model.depth": 0,
        "process.time_sampling": "loss_second_moment",
        "process.respacing": "3",
        "process.variance": "fixed_small",
        "model.learn_sigma": False,
    }
    memories = [stepped(made(dit_ddpm, batch_size=40, accumulation=parts, **changes))[0].memory for parts in (1, 4)]
    assert int(jnp.sum(memories[0].written)) == 40 and len(np.unique(memories[0].losses)) > 20
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *memories)


def simple(**changes: Any) -> Update:
    config = default.get_config()
    config.update_from_flattened_dict({"batch_size": 8, "schedule.warmup_steps": 3} | changes)
    return Update(config)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_parts_are_numbered_hold_every_example_once_and_give_back_its_place(parts: int) -> None:
    def losses(params: Any, drawn: Any, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        number, image = drawn
        size = jnp.full(len(number), len(number))
        return jnp.sum(params["w"]) * jnp.mean(image, axis=(1, 2)), {
            "index": number,
            "part": part + 0 * size,
            "size": size,
        }

    images = jnp.tile(jnp.arange(8.0)[:, None, None], (1, 2, 3))
    update = simple(accumulation=parts)
    state = update.init({"w": jnp.ones(3)}, memory=jnp.zeros((8, 3), jnp.int32))
    remember = lambda memory, aux: jnp.stack([aux["index"], aux["part"], aux["size"]], axis=1)  # noqa: E731
    after, metrics = update(state, (jnp.arange(8), images), losses, lambda params: params, remember)
    number, part, size = np.asarray(after.memory).T
    assert number.tolist() == list(range(8)) and np.all(size == 8 // parts)
    assert np.unique(part, return_counts=True)[1].tolist() == [8 // parts] * parts
    # Neighbours, which lie on one device, are of different parts.
    assert part.tolist() == [i % parts for i in range(8)]
    assert metrics["loss"][0] == pytest.approx(3 * 3.5) and metrics["grad_norm"][0] == pytest.approx(3.5 * 3**0.5)


def test_rates_averages_and_counts_go_by_steps_and_not_by_parts() -> None:
    def losses(params: Any, drawn: Any, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        return jnp.square(params["w"][0] - drawn), {}

    found = []
    for parts in (1, 4):
        update = simple(accumulation=parts)
        state, rates = update.init({"w": jnp.ones(1)}), []
        step = jax.jit(lambda state, update=update: update(state, jnp.arange(8.0), losses, lambda params: params))
        for _ in range(5):
            state, metrics = step(state)
            rates.append(metrics["learning_rate"][0].item())
        found.append((state, rates))
    (whole, rates), (parts, same) = found
    assert rates == same == pytest.approx([1e-4 / 3, 2e-4 / 3, 1e-4, 1e-4, 1e-4])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), parts, whole)
    assert int(parts.step) == int(parts.guard.updates) == 5


@pytest.mark.parametrize("parts", [0, 3, 16])
def test_parts_that_do_not_divide_a_batch_are_refused(parts: int) -> None:
    with pytest.raises(UserError, match=f"^config.accumulation: {parts} does not divide batch_size=8; choose"):
        simple(accumulation=parts)
