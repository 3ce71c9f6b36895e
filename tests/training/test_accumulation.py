"""A batch in parts is the same step: losses, gradients, metrics, what is remembered, and what counts steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Network
from archirf_jax.errors import UserError
from archirf_jax.training.update import Update
from tests.training.toys import Denoising, config, on_module, started, step, summed

B1 = 0.9


def gradient(network: Network) -> list[np.ndarray]:
    """Of the first step, as the first moment holds it."""
    leaves = jax.tree_util.tree_leaves_with_path(network.opt)
    return [np.asarray(leaf) / (1 - B1) for path, leaf in leaves if ".mu" in jax.tree_util.keystr(path)]


def test_four_parts_are_one_batch() -> None:
    batch = {"image": jax.random.normal(jax.random.key(0), (128, 4))}
    found = []
    for parts in (1, 4):
        task = Denoising(config(batch_size=128, accumulation=parts))
        state = task.init(jax.random.key(0), {})
        found.append(jax.jit(task.step)(state, {}, batch, jax.random.key(1)))
    (whole, one), (parts, four) = found
    assert one.keys() == four.keys() and one["loss"][0] > 0.01
    assert one["half"][1] == four["half"][1] == 128
    for metric in one:
        if not metric.startswith(("update_norm", "param_norm")):  # a first step of Adam is nearly a sign
            np.testing.assert_allclose(four[metric], one[metric], rtol=2e-6, atol=1e-7, err_msg=metric)
    ours, theirs = gradient(parts.networks["net"]), gradient(whole.networks["net"])
    assert len(ours) == len(theirs) == 4
    longest = max(np.max(np.abs(leaf)) for leaf in theirs)
    for mine, leaf in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, leaf, atol=1e-6 * longest, rtol=0)
    moved = sum(np.sum(leaf**2) for leaf in theirs) ** 0.5
    assert one["grad_norm"][0] == pytest.approx(moved, rel=1e-5) and moved > 1e-3


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_parts_are_numbered_hold_every_example_once_and_give_back_its_place(parts: int) -> None:
    @on_module
    def losses(params: Any, drawn: Any, part: Any) -> Any:
        number, image = drawn
        size = jnp.full(len(number), len(number))
        noted = {"all": jnp.stack([number, part + 0 * size, size], axis=1)}
        return jnp.sum(params["w"]) * jnp.mean(image, axis=(1, 2)), {"number": summed(number)}, noted

    images = jnp.tile(jnp.arange(8.0)[:, None, None], (1, 2, 3))
    update = Update(config(accumulation=parts), "net", remember=lambda kept, noted: noted["all"])
    assert update.accumulation == parts
    state = started(update, {"w": jnp.ones(3)}, jnp.zeros((8, 3), jnp.int32))
    after, metrics = step(update, state, (jnp.arange(8), images), losses)
    number, part, size = np.asarray(after.networks["net"].objective_state).T
    assert number.tolist() == list(range(8)) and np.all(size == 8 // parts)
    assert np.unique(part, return_counts=True)[1].tolist() == [8 // parts] * parts
    # Neighbours, which lie on one device, are of different parts.
    assert part.tolist() == [i % parts for i in range(8)]
    assert metrics["number"].tolist() == [28, 8]
    assert metrics["loss"][0] == pytest.approx(3 * 3.5) and metrics["grad_norm"][0] == pytest.approx(3.5 * 3**0.5)


def test_rates_averages_and_counts_go_by_steps_and_not_by_parts() -> None:
    @on_module
    def losses(params: Any, drawn: Any, part: Any) -> Any:
        return jnp.square(params["w"][0] - drawn), {}, {}

    found = []
    for parts in (1, 4):
        update = Update(config(accumulation=parts, schedule__warmup_steps=3), "net")
        state, rates = started(update, {"w": jnp.ones(1)}), []
        one = jax.jit(lambda state, update=update: step(update, state, jnp.arange(8.0), losses))
        for _ in range(5):
            state, metrics = one(state)
            rates.append(metrics["learning_rate"][0].item())
        found.append((state, rates))
    (whole, rates), (parts, same) = found
    assert rates == same == pytest.approx([1e-4 / 3, 2e-4 / 3, 1e-4, 1e-4, 1e-4])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), parts, whole)
    assert int(parts.step) == int(parts.networks["net"].guard.updates) == 5


@pytest.mark.parametrize("parts", [0, 3, 16])
def test_parts_that_do_not_divide_a_batch_are_refused(parts: int) -> None:
    with pytest.raises(UserError) as caught:
        Update(config(accumulation=parts), "net")
    assert caught.value.field == "accumulation"
