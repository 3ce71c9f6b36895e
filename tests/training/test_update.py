"""One update: the law that parameters are held to, constants that stay, the average, and what is told of the step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.training.state import TrainState
from archirf_jax.training.update import Update
from configs import default

RATE = 0.1
PARAMS = {
    "layer": {"kernel": jnp.asarray([[3.0, 4.0]]), "bias": jnp.asarray([1.0, -2.0])},
    "frozen_table": jnp.asarray([5.0, 6.0]),
}
X = jnp.asarray([[1.0], [2.0], [-1.0]])


def update(**changes: Any) -> Update:
    config = default.get_config()
    fields = {"optimizer__learning_rate": RATE, "schedule__warmup_steps": 0, "optimizer__clip_norm": 0.0} | changes
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return Update(config)


def losses(params: Any, drawn: Any = X, part: Any = 0) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of a linear layer beside a constant, which has a gradient too."""
    out = drawn @ params["layer"]["kernel"] + params["layer"]["bias"] - params["frozen_table"]
    return jnp.sum(jnp.square(out), axis=1), {"size": jnp.abs(out[:, 0])}


def mean_loss(params: Any) -> jax.Array:
    return jnp.mean(losses(params)[0])


def same(params: Any) -> Any:
    return params


def unit(params: Any) -> Any:
    """Kernels of length 1."""
    kernel = params["layer"]["kernel"]
    return params | {"layer": params["layer"] | {"kernel": kernel / jnp.linalg.norm(kernel)}}


def assert_close(ours: Any, theirs: Any, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 1e-6})), ours, theirs)


def stepped(params: Any, slope: Any) -> Any:
    """Adam's first step."""
    return jax.tree.map(lambda p, g: p - RATE * jnp.sign(g), params, slope)


def leaves(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_the_first_step_of_adam_goes_down_the_slope_by_the_learning_rate() -> None:
    made = update()
    after, _ = made(made.init(PARAMS), X, losses, same)
    slope = jax.grad(mean_loss)(PARAMS)
    assert_close(after.params["layer"], stepped(PARAMS, slope)["layer"], rtol=1e-5)
    assert mean_loss(after.params) < mean_loss(PARAMS)


@pytest.mark.parametrize("law", [same, unit])
def test_constants_stay_bit_for_bit_and_have_no_state(law: Any) -> None:
    made = update(optimizer__weight_decay=0.1, optimizer__clip_norm=1.0)
    state = made.init(PARAMS)
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt) if leaf.ndim]
    assert sorted(moments) == [(1, 2), (1, 2), (2,), (2,)]  # two of the kernel, two of the bias
    for _ in range(5):
        state, _ = made(state, X, losses, law)
    for tree in (state.params, state.ema):
        np.testing.assert_array_equal(tree["frozen_table"], PARAMS["frozen_table"])
        assert not np.any(tree["layer"]["bias"] == PARAMS["layer"]["bias"])


def test_the_law_holds_before_the_step_and_not_after_it() -> None:
    made = update()
    seen = []

    def watched(params: Any, drawn: Any, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        seen.append(params)
        return losses(params)

    after, metrics = made(made.init(PARAMS), X, watched, unit)
    held = unit(PARAMS)
    assert len(seen) == 1 and metrics["loss"][0] == pytest.approx(float(mean_loss(held)), rel=1e-6)
    slope = jax.grad(mean_loss)(held)  # at the parameters that obey the law, and not through it
    assert_close(after.params["layer"], stepped(held, slope)["layer"], rtol=1e-5)
    assert abs(np.linalg.norm(after.params["layer"]["kernel"]) - 1) > 0.01
    again, _ = made(after, X, losses, unit)
    move = again.params["layer"]["kernel"] - unit(after.params)["layer"]["kernel"]
    assert np.max(np.abs(move)) < 2 * RATE


def test_weight_decay_pulls_at_the_parameters_that_obey_the_law() -> None:
    plain, decaying = (update(optimizer__weight_decay=decay) for decay in (0.0, 0.5))
    (first, _), (second, _) = (each(each.init(PARAMS), X, losses, unit) for each in (plain, decaying))
    pulled = first.params["layer"]["kernel"] - second.params["layer"]["kernel"]
    np.testing.assert_allclose(pulled, RATE * 0.5 * unit(PARAMS)["layer"]["kernel"], rtol=1e-4)
    np.testing.assert_array_equal(first.params["layer"]["bias"], second.params["layer"]["bias"])


def test_the_average_is_one_of_weights_as_the_optimizer_leaves_them() -> None:
    made = update(ema__decay=0.9)
    state = made.init(PARAMS)
    expected = PARAMS
    for step in range(4):
        state, _ = made(state, X, losses, unit)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, expected, state.params)
        assert_close(state.ema, expected, rtol=1e-5)
    assert int(state.step) == 4


def test_what_is_told_of_a_step() -> None:
    made = update(schedule__warmup_steps=4, optimizer__clip_norm=1.0)
    state = made.init(PARAMS)
    for rate in (RATE / 4, RATE / 2):
        before = state
        state, metrics = made(state, X, losses, same)
        assert all(value.shape == (2,) for value in metrics.values())
        expected = {
            "loss": mean_loss(before.params),
            "learning_rate": rate,
            "grad_norm": np.linalg.norm(leaves(jax.grad(mean_loss)(before.params))),  # before it is cut
            "update_norm": np.linalg.norm(leaves(state.params) - leaves(before.params)),
            "param_norm": np.linalg.norm(leaves(state.params)),
            "grad_norm/layer": np.linalg.norm(leaves(jax.grad(mean_loss)(before.params)["layer"])),
            "param_norm/frozen_table": np.linalg.norm(PARAMS["frozen_table"]),
            "size": np.mean(losses(before.params)[1]["size"]),
            "skipped": 0.0,
        }
        assert_close({name: metrics[name][0] for name in expected}, expected, rtol=1e-4)
        assert_close({name: metrics[name][1] for name in expected}, dict.fromkeys(expected, 1.0))
        assert metrics["grad_norm"][0] > 10


def test_gradients_longer_than_the_limit_are_cut_to_it() -> None:
    """Adam's first step does not depend on a gradient's length, but its second moment does."""
    sizes = []
    for clip in (0.0, 1.0, 1e6):
        made = update(optimizer__clip_norm=clip)
        after, _ = made(made.init(PARAMS), X, losses, same)
        kernels = [leaf for leaf in jax.tree.leaves(after.opt) if leaf.shape == (1, 2)]
        sizes.append(np.max(np.abs(np.asarray(kernels))))
    assert sizes[0] == sizes[2] > 10 * sizes[1] > 0


def test_the_memory_is_handed_on_as_it_was() -> None:
    made = update()
    memory = {"losses": jnp.arange(3.0)}
    state = made.init(PARAMS, memory)
    after, _ = made(state, X, losses, same)
    assert_close(after.memory, memory)
    assert made.init(PARAMS).memory == ()


def test_the_average_begins_as_a_float32_copy_of_the_parameters() -> None:
    halves = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    state = update().init(halves)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.ema)} == {jnp.dtype(jnp.float32)}
    assert_close(state.ema, PARAMS)
    own = update().init(PARAMS)
    pairs = zip(jax.tree.leaves(own.params), jax.tree.leaves(own.ema), strict=True)
    # A compiled step gives both away, and nobody can give the same memory twice.
    assert all(first.unsafe_buffer_pointer() != second.unsafe_buffer_pointer() for first, second in pairs)


def test_inside_a_compiled_loop_steps_are_the_same() -> None:
    made = update(ema__decay=0.9, optimizer__weight_decay=0.1)

    def one(state: TrainState, _: Any) -> tuple[TrainState, jax.Array]:
        state, metrics = made(state, X, losses, unit)
        return state, metrics["loss"][0]

    looped, told = jax.jit(lambda state: jax.lax.scan(one, state, length=4))(made.init(PARAMS))
    state = made.init(PARAMS)
    for i in range(4):
        state, loss = one(state, None)
        assert loss == pytest.approx(float(told[i]), rel=1e-5)
    assert_close((looped.params, looped.ema), (state.params, state.ema), rtol=1e-5)
