"""The guard: what a bad batch must not touch, when a run stops, and the scale that float16 gradients need."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.training import guard
from archirf_jax.training.advance import Advance
from archirf_jax.training.state import Guard, TrainState
from archirf_jax.training.update import Update
from configs import default

NAN, INF = float("nan"), float("inf")


def config(dtype: str = "float32", **changes: Any) -> Any:
    made = default.get_config()
    fields = {"schedule__warmup_steps": 0, "batch_size": 4, "ema__more_decays": (0.5,)} | changes
    made.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    with made.unlocked():
        made.model.dtype = dtype
    return made


def watched(losses: Any, scaled: bool = False, start: Guard | None = None, norms: Any = None, **limits: Any) -> Guard:
    """The guards after each of the losses (n,), a tree of (n,), without a stop's end."""
    made = config(**{f"guard__{name}": value for name, value in limits.items()}).guard
    losses = jnp.asarray(losses, jnp.float32)
    norms = jnp.ones_like(losses) if norms is None else jnp.asarray(norms, jnp.float32)

    def one(before: Guard, seen: Any) -> tuple[Guard, Guard]:
        after, fine = guard.watch(before, *seen, made, scaled)
        return after, after.replace(skipped=jnp.where(fine == (after.updates > before.updates), after.skipped, -1))

    return jax.jit(lambda first: jax.lax.scan(one, first, (losses, norms)))(start or guard.init(scaled))[1]


def last(guards: Guard) -> dict[str, float]:
    return {field.name: getattr(guards, field.name)[-1].item() for field in dataclasses.fields(guards)}


def same(first: Any, second: Any) -> bool:
    """Bit for bit."""
    pairs = zip(*map(jax.tree.leaves, (first, second)), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.parametrize(("field", "value"), [("patience", 0), ("patience", -1), ("jump", -1.0)])
def test_limits_that_mean_nothing_are_refused(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^config.guard.{field}: {value:g} must be"):
        Update(config(**{f"guard__{field}": value}))


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


@pytest.mark.parametrize("patience", [1, 2, 5])
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


@pytest.mark.parametrize("deviations", [3.0, 10.0])
def test_a_loss_so_many_deviations_above_the_mean_stops_and_one_below_does_not(deviations: float) -> None:
    start, deviation = settled()
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


def test_an_overflow_halves_the_scale_without_a_word_about_patience() -> None:
    guards = watched([NAN] * 15 + [1.0] + [NAN] * 3, scaled=True, patience=3)
    assert guards.scale[:15].tolist() == [2.0**power for power in range(14, -1, -1)]
    assert guards.in_a_row.tolist() == [*[0] * 16, 1, 2, 2]  # a scale of 1 cannot fall, so the scale is not to blame
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
    """A task: w is pulled to what is drawn, which may be no number; its memory are the latest losses."""

    def __init__(self, **changes: Any) -> None:
        self.update = Update(config(**changes))

    def init(self, key: jax.Array) -> TrainState:
        return self.update.init({"line": {"kernel": jnp.asarray([[1.0, 2.0]])}}, memory=jnp.zeros(4))

    def step(self, state: TrainState, batch: Any, key: jax.Array) -> Any:
        return self.update(state, batch, self.losses(key), self.constrained, lambda memory, aux: aux["index"])

    def losses(self, key: jax.Array) -> Any:
        def losses(params: Any, drawn: jax.Array, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            off = jnp.sum(params["line"]["kernel"]) - drawn
            return jnp.square(off), {"index": off, "off": off}

        return losses

    def constrained(self, params: Any) -> Any:
        return params


class Numbers:
    """A feed of batches of 4, whose `bad` ones hold one NaN."""

    dispatch = 8

    def __init__(self, bad: tuple[int, ...]) -> None:
        self.bad = bad

    def chunk(self, step: int, n: int) -> Any:
        values = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
        values[list(self.bad), 2] = NAN
        return values[step : step + self.dispatch]

    def batch(self, chunk: Any, i: Any, key: Any) -> Any:
        return jnp.asarray(chunk)[i]

    def close(self) -> None: ...


def test_a_skipped_update_leaves_everything_but_the_counts_bit_for_bit() -> None:
    task, batch = Line(), jnp.asarray([1.0, 2.0, 3.0, 4.0])
    state, step = task.init(jax.random.key(0)), jax.jit(task.step)
    for _ in range(3):
        state, _ = step(state, batch, jax.random.key(0))
    for bad in (batch.at[1].set(NAN), batch.at[3].set(INF)):
        after, metrics = step(state, bad, jax.random.key(0))
        for field in ("params", "ema", "opt", "memory", "averages"):
            assert jax.tree.leaves(getattr(after, field)) and same(getattr(after, field), getattr(state, field)), field
        assert int(after.step) == 4 and int(after.guard.updates) == 3 and int(after.guard.skipped) == 1
        # A loss that is no number has no share in any mean.
        assert {name for name, pair in metrics.items() if np.any(pair != 0)} == {"skipped", "stopped"}
        assert metrics["skipped"].tolist() == [1, 1] and metrics["stopped"].tolist() == [0, 1]
    on, metrics = step(after, batch, jax.random.key(0))
    expected, _ = step(state, batch, jax.random.key(0))
    assert same(on.replace(step=expected.step, guard=expected.guard), expected)
    assert metrics["skipped"].tolist() == [0, 1] and metrics["loss"][1] == 1


def test_a_gradient_that_is_no_number_is_enough() -> None:
    made = Update(config())
    state = made.init({"line": {"kernel": jnp.zeros((1, 2))}})
    rooted = lambda params, drawn, part: (drawn + jnp.sqrt(jnp.sum(params["line"]["kernel"])), {})  # noqa: E731
    after, metrics = jax.jit(lambda state: made(state, jnp.ones(4), rooted, lambda params: params))(state)
    assert same(after.params, state.params) and metrics["skipped"][0] == 1


@pytest.mark.parametrize("parts", [1, 2])
def test_in_a_compiled_loop_the_patient_go_on_and_the_impatient_end_before_the_step(parts: int) -> None:
    task = Line(guard__patience=2, accumulation=parts)
    feed = Numbers(bad=(1, 3, 4, 6))
    state, rows = Advance(task, feed, 0)(task.init(jax.random.key(0)), feed.chunk(0, 8), 8)  # type: ignore[arg-type]
    assert rows["skipped"][:, 0].tolist() == [0, 1, 0, 1, 1, 0, 0, 0]
    assert rows["stopped"][:, 0].tolist() == [0, 0, 0, 0, guard.NOT_FINITE, 0, 0, 0]
    good = Advance(task, feed, 0)(task.init(jax.random.key(0)), feed.chunk(0, 4), 4)[0]  # type: ignore[arg-type]
    assert int(state.step) == int(good.step) == 4 and int(good.guard.updates) == 2
    assert same(state.replace(guard=good.guard), good)
    assert same(state.guard.replace(stopped=good.guard.stopped), good.guard)


def halves(params: Any, drawn: jax.Array, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computed in float16, with slopes as small or large as `drawn`, which is float32."""
    out = jnp.sum((params["line"]["kernel"] * jnp.asarray([[1.0, 3.0]])).astype(jnp.float16))
    return out.astype(jnp.float32) * drawn, {}


@pytest.mark.parametrize(("dtype", "kept"), [("float32", False), ("float16", True)])
def test_gradients_too_small_for_float16_are_kept_by_the_scale(dtype: str, kept: bool) -> None:
    made = Update(config(dtype))
    state = made.init({"line": {"kernel": jnp.ones((1, 2))}})
    after, metrics = made(state, jnp.full(4, 4e-9), halves, lambda params: params)
    assert metrics["grad_norm"][0] == pytest.approx(4e-9 * 10**0.5 if kept else 0.0, rel=1e-2)
    assert metrics["loss"][0] == pytest.approx(4 * 4e-9, rel=1e-3) and ("loss_scale" in metrics) == kept
    assert same(after.params, state.params) != kept


def test_the_scale_falls_until_gradients_fit_and_is_told() -> None:
    made, told = Update(config("float16", guard__patience=1)), []
    state = made.init({"line": {"kernel": jnp.ones((1, 2))}})
    step = jax.jit(lambda state: made(state, jnp.full(4, 8.0), halves, lambda params: params))
    for _ in range(4):
        state, metrics = step(state)
        told.append((metrics["loss_scale"][0].item(), metrics["skipped"][0].item(), metrics["grad_norm"][0].item()))
    # 8 times the scale must stay below 65504.
    assert [row[:2] for row in told] == [(2.0**15, 1), (2.0**14, 1), (2.0**13, 1), (2.0**12, 0)]
    assert told[-1][2] == pytest.approx(8 * 10**0.5, rel=1e-3) and int(state.guard.updates) == 1
