"""The guard: what a bad batch must not touch, when a run stops, and the scale that float16 gradients need."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Guard, TrainState
from archirf_jax.errors import UserError
from archirf_jax.training import guard
from archirf_jax.training.step_runner import StepRunner
from archirf_jax.training.update import Update
from tests.training import toys
from tests.training.toys import on_module, same, started, step

NAN, INF = float("nan"), float("inf")


def config(dtype: str = "float32", **changes: Any) -> Any:
    return toys.config(**{"batch_size": 4, "ema__more_decays": (0.5,), "model__dtype": dtype} | changes)


def watched(
    losses: Any, scaled: bool = False, start: Guard | None = None, norms: Any = None, sizes: Any = None, **limits: Any
) -> Guard:
    """The guards after each of the losses (n,), gradients and updates, a tree of (n,), without a stop's end."""
    made = config(**{f"guard__{name}": value for name, value in limits.items()}).guard
    losses = jnp.asarray(losses, jnp.float32)
    norms, sizes = (
        jnp.ones_like(losses) if each is None else jnp.asarray(each, jnp.float32) for each in (norms, sizes)
    )

    def one(before: Guard, seen: Any) -> tuple[Guard, Guard]:
        after, fine = guard.watch(before, *seen, made, scaled)
        return after, after.replace(skipped=jnp.where(fine == (after.updates > before.updates), after.skipped, -1))

    return jax.jit(lambda first: jax.lax.scan(one, first, (losses, norms, sizes)))(start or guard.init(scaled))[1]


def last(guards: Guard) -> dict[str, float]:
    return {field.name: getattr(guards, field.name)[-1].item() for field in dataclasses.fields(guards)}


@pytest.mark.parametrize(("field", "value"), [("patience", 0), ("patience", -1), ("jump", -1.0), ("jump", 0.0)])
def test_limits_that_mean_nothing_are_refused(field: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        Update(config(**{f"guard__{field}": value}), "net")
    assert caught.value.field == f"guard.{field}"


def test_mean_and_spread_weigh_the_first_losses_alike_and_later_ones_forget() -> None:
    losses = np.random.default_rng(0).normal(3.0, 2.0, 400) + np.linspace(5, 0, 400)
    guards = watched(losses)
    for n in (1, 2, 57, 100, 101, 250, 400):
        weights = np.full(min(n, 100), 1 / min(n, 100))
        for _ in range(n - len(weights)):
            weights = np.append(weights * guard.MEMORY, 1 - guard.MEMORY)
        mean = np.sum(weights * losses[:n])
        assert guards.mean[n - 1] == pytest.approx(mean, rel=1e-5)
        assert guards.spread[n - 1] == pytest.approx(np.sum(weights * (losses[:n] - mean) ** 2), rel=1e-4, abs=1e-6)
    assert guards.updates.tolist() == list(range(1, 401)) and not np.any(guards.skipped)


def test_bad_losses_are_counted_forgotten_and_begin_no_row_after_a_good_one() -> None:
    losses, norms = [1.0, NAN, 2.0, INF, 3.0, 4.0, 5.0], [1.0, 1.0, 1.0, 1.0, NAN, INF, 1.0]
    guards = watched(losses, norms=norms, patience=4)
    assert guards.in_a_row.tolist() == [0, 1, 0, 1, 2, 3, 0]
    assert guards.skipped.tolist() == [0, 1, 1, 2, 3, 4, 4]
    assert guards.updates.tolist() == [1, 1, 2, 2, 2, 2, 3]
    assert not np.any(guards.stopped) and np.all(guards.scale == 1)
    assert guards.mean[-1] == pytest.approx(np.mean([1, 2, 5])) and guards.spread[-1] == pytest.approx(26 / 9)


def test_an_update_that_is_not_finite_counts_as_a_loss_that_is_not_and_never_against_the_scale() -> None:
    for scaled in (False, True):
        guards = watched([1.0] * 4, sizes=[1.0, INF, NAN, 1.0], scaled=scaled)
        assert guards.in_a_row.tolist() == [0, 1, 2, 0] and guards.updates.tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize("patience", [1, 5])
def test_it_stops_at_exactly_the_last_of_the_bad_ones_it_has_patience_for(patience: int) -> None:
    guards = watched([1.0, *[NAN] * patience], patience=patience)
    assert guards.stopped.tolist() == [*[0] * patience, guard.NOT_FINITE]
    before, after = ({**last(jax.tree.map(lambda leaf, n=n: leaf[:n], guards))} for n in (patience, patience + 1))
    assert after == before | {"stopped": guard.NOT_FINITE}


def settled(updates: int = guard.SETTLED) -> tuple[Guard, float]:
    """(the guard after losses of mean 2, their deviation)."""
    losses = 2 + np.random.default_rng(1).normal(0, 0.5, updates)
    guards = watched(losses)
    return jax.tree.map(lambda leaf: leaf[-1], guards), float(guards.spread[-1]) ** 0.5


def test_a_loss_so_many_deviations_above_the_mean_stops_and_one_below_does_not() -> None:
    deviations, (start, deviation) = 3.0, settled()
    for sign, share, reason in ((1, 1.01, guard.JUMP), (1, 0.99, 0), (-1, 5.0, 0)):
        loss = float(start.mean) + sign * share * deviations * deviation
        after = last(watched([loss], start=start, jump=deviations))
        assert after["stopped"] == reason and after["updates"] == guard.SETTLED + (reason == 0)
        if reason:
            assert after == {**last(jax.tree.map(lambda leaf: leaf[None], start)), "stopped": reason}
        assert last(watched([loss], start=start))["stopped"] == 0  # unless asked, never


def test_no_jump_before_the_fall_of_the_beginning_is_over_whatever_was_skipped() -> None:
    start, deviation = settled(guard.SETTLED - 1)
    high = float(start.mean) + 100 * deviation
    assert last(watched([NAN, NAN, high], start=start, jump=3.0))["stopped"] == 0
    assert last(watched([2.0, NAN, high], start=start, jump=3.0))["stopped"] == guard.JUMP


def test_an_overflow_halves_the_scale_without_touching_patience() -> None:
    guards = watched([NAN] * 15 + [1.0] + [NAN] * 3, scaled=True, patience=3)
    assert guards.scale[:15].tolist() == [2.0**power for power in range(14, -1, -1)]
    assert guards.in_a_row.tolist() == [*[0] * 16, 1, 2, 2]  # a scale of 1 cannot fall
    assert guards.stopped.tolist() == [*[0] * 18, guard.NOT_FINITE]
    assert np.all(guards.scale[14:] == 1) and guards.skipped[-1] == 17


def test_the_scale_doubles_when_it_was_quiet_for_long_and_never_above_its_limit() -> None:
    losses = np.ones(12 * guard.QUIET)
    guards = watched(losses, scaled=True)
    doubled = np.flatnonzero(np.diff(np.asarray(guards.scale), prepend=guard.FIRST_SCALE)) + 1
    assert doubled.tolist() == [guard.QUIET * i for i in range(1, 10)]
    assert np.max(guards.scale) == guards.scale[-1] == guard.LARGEST_SCALE
    losses[guard.QUIET // 2] = NAN  # quiet begins anew
    later = watched(losses[: 2 * guard.QUIET], scaled=True)
    changes = np.flatnonzero(np.diff(np.asarray(later.scale))) + 1
    assert changes.tolist() == [guard.QUIET // 2, guard.QUIET // 2 + guard.QUIET]
    assert last(watched(losses))["scale"] == 1  # other dtypes need none


class Line:
    """A task: w is pulled to the batch, which may be NaN; its objective_state are the latest distances."""

    def __init__(self, **changes: Any) -> None:
        self.frozen: dict[str, Any] = {}
        self.updates = {"net": Update(config(**changes), "net", remember=lambda kept, noted: noted["off"])}

    def init(self, key: jax.Array, frozen: Any) -> TrainState:
        return started(self.updates["net"], {"line": {"kernel": jnp.asarray([[1.0, 2.0]])}}, jnp.zeros(4))

    def step(self, state: TrainState, frozen: Any, batch: Any, key: jax.Array) -> Any:
        return step(self.updates["net"], state, *self.losses(state, frozen, batch, key, "net"))

    def losses(self, state: Any, frozen: Any, batch: Any, key: Any, network: str, train: bool = True) -> Any:
        @on_module
        def losses(params: Any, drawn: jax.Array, part: Any) -> Any:
            off = jnp.sum(params["line"]["kernel"]) - drawn
            return jnp.square(off), {"off": toys.pair(off)}, {"off": off}

        return batch["image"][:, 0], losses

    def preview(self, *args: Any) -> None: ...


def test_a_skipped_update_leaves_everything_but_the_counts_bit_for_bit() -> None:
    task, image = Line(), jnp.asarray([[1.0], [2.0], [3.0], [4.0]])
    state, one = task.init(jax.random.key(0), {}), jax.jit(task.step)
    for _ in range(3):
        state, _ = one(state, {}, {"image": image}, jax.random.key(0))
    network = state.networks["net"]
    for bad in (image.at[1].set(NAN), image.at[3].set(INF)):
        after, metrics = one(state, {}, {"image": bad}, jax.random.key(0))
        skipped = after.networks["net"]
        for field in ("params", "opt", "objective_state", "averages"):
            kept = getattr(skipped, field)
            assert jax.tree.leaves(kept) and same(kept, getattr(network, field)), field
        assert int(after.step) == 4 and int(skipped.guard.updates) == 3 and int(skipped.guard.skipped) == 1
        # A loss that is no number has no share in any mean.
        assert {name for name, pair in metrics.items() if np.any(pair != 0)} == {"skipped", "stopped"}
        assert metrics["skipped"].tolist() == [1, 1] and metrics["stopped"].tolist() == [0, 1]
    on, metrics = one(after, {}, {"image": image}, jax.random.key(0))
    expected, _ = one(state, {}, {"image": image}, jax.random.key(0))
    guarded = expected.networks["net"].guard
    assert same(toys.other(on.networks["net"], guard=guarded), expected.networks["net"])
    assert metrics["skipped"].tolist() == [0, 1] and metrics["loss"][1] == 1


def test_a_gradient_that_is_not_finite_is_enough() -> None:
    made = Update(config(), "net")
    state = started(made, {"line": {"kernel": jnp.zeros((1, 2))}})

    @on_module
    def rooted(params: Any, drawn: jax.Array, part: Any) -> Any:
        return drawn + jnp.sqrt(jnp.sum(params["line"]["kernel"])), {}, {}

    after, metrics = jax.jit(lambda state: step(made, state, jnp.ones(4), rooted))(state)
    assert same(after.networks["net"].params, state.networks["net"].params) and metrics["skipped"][0] == 1


@pytest.mark.parametrize("parts", [1, 2])
def test_in_a_compiled_loop_the_patient_go_on_and_the_impatient_end_before_the_step(parts: int) -> None:
    task = Line(guard__patience=2, accumulation=parts)
    feed = toys.Feed(bad=(1, 3, 4), batch_size=4)
    begun = functools.partial(task.init, jax.random.key(0), {})
    state, rows = StepRunner(task, feed, 0)(begun(), *feed.chunk(0, 6))
    assert rows["skipped"][:, 0].tolist() == [0, 1, 0, 1, 1, 0]
    assert rows["stopped"][:, 0].tolist() == [0, 0, 0, 0, guard.NOT_FINITE, 0]
    good = StepRunner(task, feed, 0)(begun(), *feed.chunk(0, 4))[0]
    network, clean = state.networks["net"], good.networks["net"]
    assert int(state.step) == int(good.step) == 4 and int(clean.guard.updates) == 2
    assert same(toys.other(network, guard=clean.guard), clean)
    assert same(network.guard.replace(stopped=clean.guard.stopped), clean.guard)


@on_module
def halves(params: Any, drawn: jax.Array, part: Any) -> Any:
    """Computed in float16, with slopes as small or large as `drawn`, which is float32."""
    out = jnp.sum((params["line"]["kernel"] * jnp.asarray([[1.0, 3.0]])).astype(jnp.float16))
    return out.astype(jnp.float32) * drawn, {}, {}


@pytest.mark.parametrize(("dtype", "kept"), [("float32", False), ("float16", True)])
def test_gradients_too_small_for_float16_are_kept_by_the_scale(dtype: str, kept: bool) -> None:
    made = Update(config(dtype), "net")
    state = started(made, {"line": {"kernel": jnp.ones((1, 2))}})
    after, metrics = step(made, state, jnp.full(4, 4e-9), halves)
    assert metrics["grad_norm"][0] == pytest.approx(4e-9 * 10**0.5 if kept else 0.0, rel=1e-2)
    assert metrics["loss"][0] == pytest.approx(4 * 4e-9, rel=1e-3) and ("loss_scale" in metrics) == kept
    assert same(after.networks["net"].params, state.networks["net"].params) != kept


def test_the_scale_falls_until_gradients_fit_and_is_a_metric() -> None:
    made, rows = Update(config("float16", guard__patience=1), "net"), []
    state = started(made, {"line": {"kernel": jnp.ones((1, 2))}})
    one = jax.jit(lambda state: step(made, state, jnp.full(4, 8.0), halves))
    for _ in range(4):
        state, metrics = one(state)
        rows.append((metrics["loss_scale"][0].item(), metrics["skipped"][0].item(), metrics["grad_norm"][0].item()))
    # 8 times the scale must stay below 65504.
    assert [row[:2] for row in rows] == [(2.0**15, 1), (2.0**14, 1), (2.0**13, 1), (2.0**12, 0)]
    assert rows[-1][2] == pytest.approx(8 * 10**0.5, rel=1e-3) and int(state.networks["net"].guard.updates) == 1
