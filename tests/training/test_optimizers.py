"""Schedules hit their corners, every optimizer follows its formula, decay spares what it should."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.training import ema
from archirf_jax.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    edm2_learning_rate,
    evaluation_params,
    make_optimizer,
    make_schedule,
)
from archirf_jax.training.update import Update
from tests.training.toys import config, started, step

LAYERS = {
    "layer": {"kernel": jnp.asarray([[0.5, -1.0], [2.0, 0.25]]), "bias": jnp.asarray([1.0, -2.0])},
    "frozen_table": jnp.asarray([5.0, 6.0]),
}
PARAMS = {"net": LAYERS}
GRADIENTS = [  # of six steps
    jax.tree.map(lambda p, i=i: jax.random.normal(jax.random.key(i), p.shape), PARAMS) for i in range(6)
]
RATES = [0.1 * min(1, (i + 1) / 3) for i in range(7)]  # of a warm-up of three


def test_warmup_rises_by_equal_steps_from_a_first_step_that_moves() -> None:
    schedule = make_schedule(config(schedule__warmup_steps=4, optimizer__learning_rate=0.4))
    np.testing.assert_allclose([schedule(i) for i in range(7)], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warmup_the_first_step_has_the_peak(warmup: int) -> None:
    schedule = make_schedule(config(schedule__warmup_steps=warmup, optimizer__learning_rate=0.4))
    np.testing.assert_allclose([schedule(i) for i in range(3)], 0.4, rtol=1e-6)


def test_cosine_falls_from_the_peak_to_zero_at_the_last_step() -> None:
    made = config(schedule__name="cosine", schedule__warmup_steps=10, steps=110, optimizer__learning_rate=1.0)
    schedule = make_schedule(made)
    expected = [0.5 * (1 + np.cos(np.pi * i / 100)) for i in (0, 25, 50, 100)]
    np.testing.assert_allclose([schedule(10 + i) for i in (0, 25, 50, 100)], expected, atol=1e-6)


def test_linear_falls_by_equal_steps_to_zero_at_the_last_step() -> None:
    made = config(schedule__name="linear", schedule__warmup_steps=10, steps=110, optimizer__learning_rate=1.0)
    schedule = make_schedule(made)
    np.testing.assert_allclose([schedule(10 + i) for i in (0, 25, 50, 99, 100)], [1, 0.75, 0.5, 0.01, 0], atol=1e-6)


@pytest.mark.parametrize(("warmup", "reference"), [(0, 50), (20, 50), (100, 40)])
def test_inverse_sqrt_is_that_of_edm2_with_steps_for_images(warmup: int, reference: int) -> None:
    made = config(
        schedule__name="inverse_sqrt",
        schedule__warmup_steps=warmup,
        schedule__reference_steps=reference,
        optimizer__learning_rate=0.3,
    )
    done = np.arange(1000)
    rates = np.asarray(jax.jit(jax.vmap(make_schedule(made)))(jnp.asarray(done)))
    images = (done + 1.0) * 16  # after the step, in batches of 16
    np.testing.assert_allclose(rates, edm2_learning_rate(images, 0.3, 16, reference, max(warmup, 1) * 16), rtol=1e-5)
    # Half the peak at four times the reference, and the first step moves.
    assert rates[4 * reference - 1] == pytest.approx(0.15) and rates[0] == pytest.approx(0.3 / max(warmup, 1))


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"geometric"}))
def test_no_schedule_depends_on_the_parts_of_a_batch(name: str) -> None:
    whole, parts = (make_schedule(config(schedule__name=name, accumulation=parts)) for parts in (1, 4))
    assert [float(whole(i)) for i in (0, 999, 5000)] == [float(parts(i)) for i in (0, 999, 5000)]


def test_wrong_names_and_a_warmup_longer_than_the_run_are_refused() -> None:
    for changes, field in (
        ({"schedule__name": "exponential"}, "schedule.name"),
        ({"schedule__name": "cosine", "schedule__warmup_steps": 100, "steps": 100}, "schedule.warmup_steps"),
        ({"schedule__name": "geometric"}, "schedule.start"),
        ({"optimizer__name": "sgd"}, "optimizer.name"),
        ({"optimizer__clip_norm": 0.0}, "optimizer.clip_norm"),
        ({"optimizer__moment_dtype": "float16"}, "optimizer.moment_dtype"),
        ({"optimizer__weight_decay_mask": "(kernel"}, "optimizer.weight_decay_mask"),
        ({"optimizer__name": "adam", "optimizer__weight_decay": 0.1}, "optimizer.weight_decay"),
        ({"optimizer__name": "schedule_free_adamw", "optimizer__b1": 0.0}, "optimizer.b1"),
    ):
        with pytest.raises(UserError) as caught:
            made = config(**changes)
            make_optimizer(made, make_schedule(made))
        assert caught.value.field == field


def test_weight_decay_touches_kernels_only() -> None:
    made = config(optimizer__weight_decay=0.5, optimizer__learning_rate=0.1, schedule__warmup_steps=0)
    optimizer = make_optimizer(made, make_schedule(made))
    layers = {
        "layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2))},
        "table": {"embedding": jnp.ones(2)},
        "weight": jnp.ones(2),
    }
    params = {"net": layers, "temperature": jnp.ones(())}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["net"]["layer"]["kernel"], -0.05, rtol=1e-6)
    updates["net"]["layer"].pop("kernel")
    assert len(jax.tree.leaves(updates)) == 4 and not any(np.any(leaf) for leaf in jax.tree.leaves(updates))


def test_weight_decay_touches_what_its_mask_names_whatever_the_module_is_called() -> None:
    layers = {
        "blocks_0": {"mlp": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones((3, 2))}},
        "table": {"embedding": jnp.ones(2)},
    }
    params = {"table": layers, "bias": layers}
    for name in ("adamw", "lion", "muon", "schedule_free_adamw"):
        made = config(
            optimizer__name=name, optimizer__weight_decay=0.5, optimizer__weight_decay_mask="table/.*|.*/bias"
        )
        optimizer = make_optimizer(made, make_schedule(made))
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        moved = jax.tree.map(lambda leaf: bool(np.any(leaf)), updates)
        expected = {"blocks_0": {"mlp": {"kernel": False, "bias": True}}, "table": {"embedding": True}}
        assert moved == {"table": expected, "bias": expected}, name


def test_clipping_makes_the_step_independent_of_the_gradients_length() -> None:
    def first_moment(scale: float, clip: float | None) -> float:
        made = config(optimizer__clip_norm=clip)
        optimizer = make_optimizer(made, make_schedule(made))
        params = {"net": {"kernel": jnp.zeros(4)}}
        _, state = optimizer.update({"net": {"kernel": jnp.full(4, scale)}}, optimizer.init(params), params)
        moments = [leaf for leaf in jax.tree.leaves(state) if getattr(leaf, "shape", None) == (4,)]
        return float(jnp.linalg.norm(moments[0]))

    assert first_moment(100.0, 1.0) == pytest.approx(0.1, rel=1e-5)
    assert first_moment(100.0, None) == pytest.approx(20.0, rel=1e-5)


def test_the_average_follows_its_formula_and_never_remembers_more_than_its_decay() -> None:
    average, expected = jnp.float32(5.0), 5.0
    values = np.random.default_rng(0).normal(size=200)
    for i, value in enumerate(values):
        average = ema.update(average, jnp.float32(value), ema.warmed(0.9)(jnp.int32(i)))
        decay = min(0.9, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * value
    assert float(average) == pytest.approx(expected, abs=1e-5)


def trajectory(**changes: Any) -> tuple[list[Any], list[Any]]:
    """(parameters, optimizer states) before the first step and after each of those along GRADIENTS."""
    fixed = {"optimizer__learning_rate": 0.1, "schedule__warmup_steps": 3}
    made = config(**fixed | changes)
    optimizer = make_optimizer(made, make_schedule(made))
    params, states, update = [PARAMS], [optimizer.init(PARAMS)], jax.jit(optimizer.update)
    for gradients in GRADIENTS:
        updates, state = update(gradients, states[-1], params[-1])
        params, states = [*params, jax.tree.map(jnp.add, params[-1], updates)], [*states, state]
    return params, states


def kernels(params: list[Any]) -> np.ndarray:
    return np.asarray([each["net"]["layer"]["kernel"] for each in params], np.float64)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_pulls_at_kernels_alone_and_constants_stay_without_state(name: str) -> None:
    params, states = trajectory(optimizer__name=name)
    assert all(np.array_equal(each["net"]["frozen_table"], LAYERS["frozen_table"]) for each in params)
    copies = {"adamw": 2, "adam": 2, "lion": 1, "schedule_free_adamw": 2}
    if name in copies:  # of the kernel and of the bias, none of the table
        shapes = [leaf.shape for leaf in jax.tree.leaves(states[-1]) if leaf.ndim]
        assert sorted(shapes) == sorted([(2, 2), (2,)] * copies[name])
    if name == "adam":
        return
    decaying, _ = trajectory(optimizer__name=name, optimizer__weight_decay=0.5)
    pulled = decaying[1]["net"]["layer"]["kernel"] - params[1]["net"]["layer"]["kernel"]
    np.testing.assert_allclose(pulled, -RATES[0] * 0.5 * LAYERS["layer"]["kernel"], rtol=1e-4)
    for plain, other in zip(params, decaying, strict=True):
        np.testing.assert_array_equal(other["net"]["layer"]["bias"], plain["net"]["layer"]["bias"])


def test_adamw_follows_its_formula_and_adam_is_the_same_without_decay() -> None:
    p = kernels([PARAMS])[0]
    m, v, expected = 0 * p, 0 * p, [p]
    for i, g in enumerate(kernels(GRADIENTS)):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        step = (m / (1 - 0.8 ** (i + 1))) / (np.sqrt(v / (1 - 0.95 ** (i + 1))) + 1e-3)
        p = p - RATES[i] * (step + 0.3 * p)
        expected.append(p)
    chosen = {"optimizer__b1": 0.8, "optimizer__b2": 0.95, "optimizer__eps": 1e-3}
    found, _ = trajectory(optimizer__weight_decay=0.3, **chosen)
    np.testing.assert_allclose(kernels(found), expected, rtol=1e-5, atol=1e-6)
    adamw, adam = (trajectory(optimizer__name=name, **chosen)[0] for name in ("adamw", "adam"))
    np.testing.assert_allclose(kernels(adam), kernels(adamw), rtol=1e-6)


def test_lion_follows_its_formula() -> None:
    """Chen et al. 2023, Alg. 2: a first step by the sign alone."""
    p = kernels([PARAMS])[0]
    m, expected = 0 * p, [p]
    for i, g in enumerate(kernels(GRADIENTS)):
        p = p - RATES[i] * (np.sign(0.9 * m + 0.1 * g) + 0.3 * p)
        m = 0.99 * m + 0.01 * g
        expected.append(p)
    lion = {"optimizer__name": "lion", "optimizer__b1": 0.9, "optimizer__b2": 0.99}
    found, _ = trajectory(optimizer__weight_decay=0.3, **lion)
    np.testing.assert_allclose(kernels(found), expected, rtol=1e-5, atol=1e-6)
    first, second = kernels(trajectory(**lion)[0][:2])
    np.testing.assert_allclose(second - first, -RATES[0] * np.sign(kernels(GRADIENTS)[0]), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adam", "lion", "muon"])
def test_the_first_moment_can_be_kept_in_bfloat16_and_nothing_else_is(name: str) -> None:
    for dtype in ("float32", "bfloat16"):
        params, states = trajectory(optimizer__name=name, optimizer__moment_dtype=dtype)
        leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(states[-1])]
        moments = [leaf.dtype.name for path, leaf in leaves if ".mu" in path]
        assert moments == [dtype, dtype]  # of kernel and bias
        assert {leaf.dtype.name for path, leaf in leaves if ".mu" not in path} <= {"float32", "int32"}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params[-1])} == {"float32"}


def test_schedule_free_is_evaluated_at_the_weighted_mean_of_where_its_base_goes() -> None:
    """Defazio et al. 2024, Alg. 1: z goes along RMSprop's steps, x is its mean by squared rates, y between them."""
    free = {"optimizer__name": "schedule_free_adamw", "optimizer__b2": 0.95}
    params, states = trajectory(optimizer__b1=0.8, optimizer__weight_decay=0.3, **free)
    z = kernels([PARAMS])[0]
    v, x, y, weights = 0 * z, z, [z], 0.0
    for i, g in enumerate(kernels(GRADIENTS)):
        v = 0.95 * v + 0.05 * g * g
        z = z - RATES[i] * (g / (np.sqrt(v / (1 - 0.95 ** (i + 1))) + 1e-8) + 0.3 * y[-1])
        weight = RATES[i + 1] ** 2
        weights += weight
        x = x + weight / weights * (z - x)
        y.append(0.8 * x + 0.2 * z)
        shown = evaluation_params(states[i + 1], params[i + 1])
        assert shown is not None
        np.testing.assert_allclose(shown["net"]["layer"]["kernel"], x, rtol=1e-4)
        np.testing.assert_array_equal(shown["net"]["frozen_table"], LAYERS["frozen_table"])
    np.testing.assert_allclose(kernels(params), y, rtol=1e-5, atol=1e-6)
    assert evaluation_params(trajectory()[1][-1], PARAMS) is None


def test_the_average_of_a_schedule_free_run_is_what_it_is_evaluated_at() -> None:
    made = Update(config(optimizer__name="schedule_free_adamw", ema__more_decays=(0.5,), batch_size=128), "net")

    def losses(params: Any, drawn: jax.Array, part: Any) -> Any:
        return drawn * sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)), {}, {}

    one = jax.jit(lambda state: step(made, state, jnp.ones(128), losses)[0])
    state, kept = started(made, LAYERS), PARAMS
    for i in range(4):
        state = one(state)
        network = state.networks["net"]
        shown = evaluation_params(network.opt, network.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), network.averages["ema"], shown)
        decay = min(0.5, (1 + i) / (10 + i))
        kept = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, kept, shown)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), network.averages["decay_0.5"], kept)
    assert np.any(
        np.abs(network.averages["ema"]["net"]["layer"]["kernel"] - network.params["net"]["layer"]["kernel"]) > 1e-6
    )
