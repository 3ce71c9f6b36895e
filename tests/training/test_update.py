"""One update: the projection of parameters, constants that stay, the average, and the metrics of the step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import TrainState
from archirf_jax.errors import UserError
from archirf_jax.training.update import Update
from tests.training.toys import config, on_module, pair, started, step

RATE = 0.1
PARAMS = {
    "layer": {"kernel": jnp.asarray([[3.0, 4.0]]), "bias": jnp.asarray([1.0, -2.0])},
    "frozen_table": jnp.asarray([5.0, 6.0]),
}
X = jnp.asarray([[1.0], [2.0], [-1.0]])


def update(project: Any = None, **changes: Any) -> Update:
    fields = {"optimizer__learning_rate": RATE, "batch_size": 3} | changes
    return Update(config(**fields), "net", project=project)


@on_module
def losses(params: Any, drawn: Any = X, part: Any = 0) -> Any:
    """Of a linear layer and a constant, which has a gradient too."""
    out = drawn @ params["layer"]["kernel"] + params["layer"]["bias"] - params["frozen_table"]
    return jnp.sum(jnp.square(out), axis=1), {"size": pair(jnp.abs(out[:, 0]))}, {}


def mean_loss(params: Any) -> jax.Array:
    return jnp.mean(losses({"net": params}, X, 0)[0])


def unit(modules: Any, objective_state: Any = ()) -> Any:
    """Kernels of length 1."""
    params = modules["net"]
    kernel = params["layer"]["kernel"]
    return {"net": params | {"layer": params["layer"] | {"kernel": kernel / jnp.linalg.norm(kernel)}}}


HELD = unit({"net": PARAMS})["net"]


def params_of(state: TrainState) -> Any:
    return state.networks["net"].params["net"]


def average_of(state: TrainState) -> Any:
    return state.networks["net"].averages["ema"]["net"]


def assert_close(ours: Any, theirs: Any, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 1e-6})), ours, theirs)


def stepped(params: Any, slope: Any) -> Any:
    """Adam's first step."""
    return jax.tree.map(lambda p, g: p - RATE * jnp.sign(g), params, slope)


def leaves(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_the_first_step_of_adam_goes_down_the_slope_by_the_learning_rate() -> None:
    made = update()
    after, _ = step(made, started(made, PARAMS), X, losses)
    slope = jax.grad(mean_loss)(PARAMS)
    assert_close(params_of(after)["layer"], stepped(PARAMS, slope)["layer"], rtol=1e-5)
    assert mean_loss(params_of(after)) < mean_loss(PARAMS)


@pytest.mark.parametrize("project", [None, unit])
def test_constants_stay_bit_for_bit_and_have_no_state(project: Any) -> None:
    made = update(project, optimizer__weight_decay=0.1, optimizer__clip_norm=1.0)
    state = started(made, PARAMS)
    moments = [leaf.shape for leaf in jax.tree.leaves(state.networks["net"].opt) if leaf.ndim]
    assert sorted(moments) == [(1, 2), (1, 2), (2,), (2,)]  # two of the kernel, two of the bias
    for _ in range(5):
        state, _ = step(made, state, X, losses)
    for tree in (params_of(state), average_of(state)):
        np.testing.assert_array_equal(tree["frozen_table"], PARAMS["frozen_table"])
        assert not np.any(tree["layer"]["bias"] == PARAMS["layer"]["bias"])


def test_the_projection_acts_before_the_step_and_not_after_it() -> None:
    made, seen = update(unit), []

    def watched(params: Any, drawn: Any, part: Any) -> Any:
        seen.append(params)
        return losses(params, drawn, part)

    after, metrics = step(made, started(made, PARAMS), X, watched)
    assert len(seen) == 1 and metrics["loss"][0] == pytest.approx(float(mean_loss(HELD)), rel=1e-6)
    slope = jax.grad(mean_loss)(HELD)  # at the projected parameters, and not through the projection
    assert_close(params_of(after)["layer"], stepped(HELD, slope)["layer"], rtol=1e-5)
    assert abs(np.linalg.norm(params_of(after)["layer"]["kernel"]) - 1) > 0.01
    again, _ = step(made, after, X, losses)
    move = params_of(again)["layer"]["kernel"] - unit({"net": params_of(after)})["net"]["layer"]["kernel"]
    assert np.max(np.abs(move)) < 2 * RATE


def test_weight_decay_pulls_at_the_projected_parameters() -> None:
    plain, decaying = (update(unit, optimizer__weight_decay=decay) for decay in (0.0, 0.5))
    first, second = (params_of(step(each, started(each, PARAMS), X, losses)[0]) for each in (plain, decaying))
    pulled = first["layer"]["kernel"] - second["layer"]["kernel"]
    np.testing.assert_allclose(pulled, RATE * 0.5 * HELD["layer"]["kernel"], rtol=1e-4)
    np.testing.assert_array_equal(first["layer"]["bias"], second["layer"]["bias"])


def test_the_average_is_one_of_weights_as_the_optimizer_leaves_them() -> None:
    made = update(unit, ema__decay=0.9)
    state, expected = started(made, PARAMS), PARAMS
    for i in range(4):
        state, _ = step(made, state, X, losses)
        decay = min(0.9, (1 + i) / (10 + i))
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, expected, params_of(state))
        assert_close(average_of(state), expected, rtol=1e-5)
    assert int(state.step) == 4


def test_the_metrics_of_a_step() -> None:
    made = update(schedule__warmup_steps=4, optimizer__clip_norm=1.0)
    state = started(made, PARAMS)
    for rate in (RATE / 4, RATE / 2):
        before = params_of(state)
        state, metrics = step(made, state, X, losses)
        assert all(value.shape == (2,) for value in metrics.values())
        slope = jax.grad(mean_loss)(before)
        expected = {
            "loss": mean_loss(before),
            "learning_rate": rate,
            "grad_norm": np.linalg.norm(leaves(slope)),  # before it is cut
            "update_norm": np.linalg.norm(leaves(params_of(state)) - leaves(before)),
            "param_norm": np.linalg.norm(leaves(params_of(state))),
            "grad_norm/layer": np.linalg.norm(leaves(slope["layer"])),
            "param_norm/frozen_table": np.linalg.norm(PARAMS["frozen_table"]),
            "size": losses({"net": before}, X, 0)[1]["size"][0],
            "skipped": 0.0,
        }
        assert_close({name: metrics[name][0] for name in expected}, expected, rtol=1e-4)
        assert_close({name: metrics[name][1] for name in expected}, dict.fromkeys(expected, 1.0))
        assert metrics["grad_norm"][0] > 10


def test_norms_of_several_modules_are_told_apart_and_one_names_layers_alone() -> None:
    made = update()
    block = {"block_0": {"kernel": jnp.ones((2, 2))}, "block_1": {"kernel": jnp.ones((2, 2))}}
    for modules, names in (
        ({"a": block, "b": block, "scale": jnp.ones(())}, {"a/block", "b/block", "scale"}),
        ({"a": block}, {"block"}),
    ):
        state = TrainState(jnp.int32(0), {"net": made.init(modules)})

        def loss(params: Any, drawn: Any, part: Any) -> Any:
            return drawn[:, 0] * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), {}, {}

        _, metrics = step(made, state, X, loss)
        assert {name.partition("/")[2] for name in metrics if name.startswith("grad_norm/")} == names
    assert metrics["param_norm/block"][0] == pytest.approx(8**0.5, rel=0.2)


def test_gradients_longer_than_the_limit_are_cut_to_it() -> None:
    """Adam's first step does not depend on a gradient's length, but its second moment does."""
    sizes = []
    for clip in (None, 1.0, 1e6):
        made = update(optimizer__clip_norm=clip)
        after, _ = step(made, started(made, PARAMS), X, losses)
        kernels = [leaf for leaf in jax.tree.leaves(after.networks["net"].opt) if leaf.shape == (1, 2)]
        sizes.append(np.max(np.abs(np.asarray(kernels))))
    assert sizes[0] == sizes[2] > 10 * sizes[1] > 0


def test_the_objective_state_is_kept_unless_the_objective_remembers() -> None:
    made, kept = update(), {"losses": jnp.arange(3.0)}
    after, _ = step(made, started(made, PARAMS, kept), X, losses)
    assert_close(after.networks["net"].objective_state, kept)
    assert made.init({"net": PARAMS}).objective_state == ()


def test_averages_begin_as_float32_copies_of_the_parameters() -> None:
    halves = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    network = update().init({"net": halves})
    assert {leaf.dtype for leaf in jax.tree.leaves(network.averages)} == {jnp.dtype(jnp.float32)}
    own = update().init({"net": PARAMS})
    pairs = zip(jax.tree.leaves(own.params), jax.tree.leaves(own.averages["ema"]), strict=True)
    # A compiled step gives both away, and nobody can give the same memory twice.
    assert all(first.unsafe_buffer_pointer() != second.unsafe_buffer_pointer() for first, second in pairs)


def test_inside_a_compiled_loop_steps_are_the_same() -> None:
    made = update(unit, ema__decay=0.9, optimizer__weight_decay=0.1)

    def one(state: TrainState, _: Any) -> tuple[TrainState, jax.Array]:
        state, metrics = step(made, state, X, losses)
        return state, metrics["loss"][0]

    looped, found = jax.jit(lambda state: jax.lax.scan(one, state, length=4))(started(made, PARAMS))
    state = started(made, PARAMS)
    for i in range(4):
        state, loss = one(state, None)
        assert loss == pytest.approx(float(found[i]), rel=1e-5)
    assert_close((params_of(looped), average_of(looped)), (params_of(state), average_of(state)), rtol=1e-5)


@pytest.mark.parametrize("rate", [1e39, 1e300, float("inf"), float("nan")])
def test_a_rate_that_is_not_finite_in_float32_is_refused(rate: float) -> None:
    with pytest.raises(UserError) as caught:
        update(optimizer__learning_rate=rate)
    assert caught.value.field == "optimizer.learning_rate"


def test_an_infinite_update_is_not_applied_and_counts_towards_patience() -> None:
    """The rate is finite, and so are loss and gradient; decay makes the update infinite."""
    made = update(optimizer__learning_rate=3e38, optimizer__weight_decay=100.0, guard__patience=3)
    state = first = started(made, PARAMS)
    for i in range(3):
        state, metrics = jax.jit(lambda state: step(made, state, X, losses))(state)
        assert_close(params_of(state), params_of(first), rtol=0)
        assert metrics["skipped"][0] == 1 and int(state.networks["net"].guard.in_a_row) == min(i + 1, 2)
    assert metrics["stopped"][0] > 0
