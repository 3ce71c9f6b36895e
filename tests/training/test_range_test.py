"""The range test on losses whose limits are known in closed form, and what it makes of curves of every form."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Frozen, Losses, Metrics, TrainState
from archirf_jax.errors import UserError
from archirf_jax.training import range_test
from archirf_jax.training.optimizers import SCHEDULES, geometric, make_schedule
from archirf_jax.training.range_test import Sweep
from archirf_jax.training.update import Update
from archirf_jax.visuals import plots
from tests.training.toys import Feed, config, started, step

STEPS = 60
CURVATURE, START = 2.0, 0.5


class Quadratic:
    """curvature / 2 |w|^2 + noise z w for each example, z drawn anew each step; NaN where |w| is above a limit."""

    def __init__(self, made: Any, curvature: float = CURVATURE, noise: float = 0.0, limit: float = np.inf) -> None:
        self.frozen: dict[str, Any] = {}
        self.updates = {"net": Update(made, "net")}
        self.curvature, self.noise, self.limit = curvature, noise, limit

    def init(self, key: jax.Array, frozen: Frozen) -> TrainState:
        return started(self.updates["net"], {"layer": {"kernel": jnp.full((1, 1), START)}})

    def step(self, state: TrainState, frozen: Frozen, batch: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        return step(self.updates["net"], state, *self.losses(state, frozen, batch, key, "net"))

    def losses(
        self, state: TrainState, frozen: Frozen, batch: Any, key: jax.Array, network: str, train: bool = True
    ) -> tuple[Any, Losses]:
        def losses(params: Any, z: jax.Array, part: Any) -> Any:
            w = params["net"]["layer"]["kernel"][0, 0]
            fine = jnp.where(jnp.abs(w) > self.limit, jnp.nan, 0.5 * self.curvature * w**2)
            return fine + self.noise * z * w, {}, {}

        return jax.random.normal(key, (len(batch["image"]),)), losses

    def preview(self, *args: Any) -> None: ...


def sweep(fields: dict[str, float], low: float, high: float, steps: int = STEPS, **changes: Any) -> Sweep:
    made = range_test.prepare(config(**{"batch_size": 16} | changes), low, high, steps)
    return range_test.sweep(Quadratic(made, **fields), Feed(batch_size=16), made)


def of_curve(losses: Any, first: float = 1.0, ended: str = "") -> Sweep:
    """Of these smoothed losses at the rates 1, 2, 4, ..."""
    losses = np.asarray(losses, float)
    return Sweep(2.0 ** np.arange(len(losses)), losses, first, losses, ended)


def test_the_rate_grows_by_equal_factors_from_the_first_to_the_last() -> None:
    schedule = geometric(1e-6, 1.0, 300)
    rates = np.asarray([schedule(i) for i in range(300)])
    assert rates[0] == pytest.approx(1e-6) and rates[-1] == pytest.approx(1.0)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 1e6 ** (1 / 299), rtol=1e-5)


def test_gradient_descent_is_advised_to_stay_below_two_over_the_curvature() -> None:
    """Adam without memory whose epsilon is large is gradient descent of rate / epsilon."""
    eps, curvature = 1e3, 4.0
    fields = {"optimizer__eps": eps, "optimizer__b1": 0.0, "optimizer__b2": 0.0, "optimizer__name": "adam"}
    found = range_test.suggest(sweep({"curvature": curvature, "noise": 0.3}, 10.0, 1e5, **fields))
    limit = 2 * eps / curvature
    assert found.edge is not None and found.rate is not None and found.steepest is not None and found.lowest is not None
    assert limit / 2 < found.edge < 2 * limit  # what diverges takes a few steps to show
    assert found.rate == pytest.approx(found.edge / 10, rel=0.05)
    assert found.steepest <= found.lowest <= found.edge


def test_adam_is_advised_the_same_whatever_the_scale_of_the_loss() -> None:
    """Its steps are about as long as the rate, so the suggestion is below the way to go."""
    sweeps = [sweep({"curvature": CURVATURE * scale, "noise": scale}, 1e-3, 1e3, 200) for scale in (1.0, 64.0)]
    found = [range_test.suggest(swept) for swept in sweeps]
    assert found[0].rate is not None and START / 100 < found[0].rate < START
    assert found[0].rate == found[1].rate


def test_what_diverges_ends_the_sweep() -> None:
    swept = sweep({}, 1e-2, 1e4)
    assert swept.ended == range_test.TOO_HIGH and len(swept.rates) < STEPS
    above = swept.smoothed - np.minimum.accumulate(swept.smoothed)
    assert above[-1] > range_test.DIVERGED * swept.first and np.all(above[:-1] <= range_test.DIVERGED * swept.first)


def test_what_is_not_finite_ends_the_sweep_and_is_left_out() -> None:
    swept = sweep({"limit": 0.6}, 1e-4, 1e4)
    assert swept.ended == range_test.NOT_FINITE and 0 < len(swept.rates) < STEPS
    assert np.all(np.isfinite(swept.losses))
    assert range_test.suggest(swept).rate is not None
    hopeless = sweep({"limit": 0.1}, 1e-4, 1.0)  # from the start
    assert (hopeless.ended, len(hopeless.rates)) == (range_test.NOT_FINITE, 0)
    assert range_test.suggest(hopeless).rate is None


def test_the_measured_loss_changes_with_the_parameters_alone_however_the_batch_is_divided() -> None:
    """Another draw each step would move it by about noise w / sqrt(16), rate 1e-9 does not."""
    swept, divided = (sweep({"noise": 1.0}, 1e-9, 1e-8, accumulation=parts) for parts in (1, 2))
    for each in (swept, divided):
        np.testing.assert_allclose(each.losses, swept.first, atol=1e-5)
        np.testing.assert_allclose(each.rates, np.geomspace(1e-9, 1e-8, STEPS), rtol=1e-4)  # that the optimizer had
        assert each.ended == "" and len(each.losses) == len(each.smoothed) == STEPS
    assert abs(swept.first - 0.5 * CURVATURE * START**2) > 1e-3  # the draw is part of it
    assert range_test.suggest(swept).rate is None


def test_a_loss_that_never_falls_gives_no_suggestion() -> None:
    for losses in ([1.0, 1.0, 1.0], [1.0, 1.5, 2.0], [0.999, 0.99, 0.995], []):
        found = range_test.suggest(of_curve(losses))
        assert found.rate is None and "never fell" in found.why


def test_the_suggestion_is_a_tenth_of_the_edge_of_the_valley() -> None:
    #         rates 1     2    4    8    16   32    64   128  256
    found = range_test.suggest(of_curve([0.99, 0.9, 0.4, 0.3, 0.2, 0.22, 0.3, 0.5, 9.0]))
    assert (found.steepest, found.lowest, found.edge, found.rate) == (4.0, 16.0, 64.0, 6.4)
    assert "64" in found.why
    shifted = range_test.suggest(of_curve(np.asarray([0.99, 0.9, 0.4, 0.3, 0.2, 0.22, 0.3, 0.5, 9.0]) - 5, first=-4.0))
    assert (shifted.edge, shifted.rate) == (64.0, 6.4)  # losses may be below 0


def test_a_sweep_that_ends_too_early_says_so() -> None:
    found = range_test.suggest(of_curve([0.9, 0.5, 0.3]))
    assert (found.edge, found.rate) == (4.0, 0.4) and "maximum" in found.why
    broken = range_test.suggest(of_curve([0.9, 0.5, 0.3], ended=range_test.NOT_FINITE))
    assert broken.rate == 0.4 and "maximum" not in broken.why


def test_smoothing_keeps_constants_and_forgets_at_its_pace() -> None:
    np.testing.assert_allclose(range_test.smooth([3.0] * 9, 5.0), 3.0)
    assert range_test.smooth([1.0, 7.0, 2.0], 1.0) == [1.0, 7.0, 2.0]
    assert range_test.smooth([1.0, 3.0], 2.0)[1] == pytest.approx((0.5 * 1 + 3) / 1.5)
    weights = np.asarray(range_test.smooth([1.0] + [0.0] * 400, 10.0)) / np.asarray(range_test.smooth([1.0], 10.0))
    assert weights[10] == pytest.approx(0.9**10 * 0.1 / (1 - 0.9**11))


def test_a_sweep_leaves_the_configuration_as_it_was() -> None:
    given = config(ema__more_decays=(0.9,), guard__jump=5.0)
    before = given.to_dict()
    made = range_test.prepare(given, 1e-6, 1.0, 300)
    assert given.to_dict() == before
    assert (made.ema.more_decays, made.guard.jump) == ((), None) and made.steps > 300
    assert made.optimizer.to_dict() == before["optimizer"] | {"learning_rate": 1.0}


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (1.0, 0.1), (0.0, 1.0), (-1.0, 1.0), (1e-3, np.inf)])
def test_rates_that_do_not_grow_are_refused(low: float, high: float) -> None:
    with pytest.raises(UserError) as caught:
        range_test.check(low, high)
    assert caught.value.field == "min"


@pytest.mark.parametrize("losses", [[0.9, 0.5, 0.2, 0.4, 7.0], [1.0, 1.0], []])
def test_plot_and_numbers_are_written_side_by_side(losses: list[float], tmp_path: pathlib.Path) -> None:
    swept = of_curve(losses, *(() if losses else (np.nan, range_test.NOT_FINITE)))
    found = range_test.conclude(swept, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((tmp_path / "new" / "a.json").read_text())
    assert (
        numbers["first"] == (1.0 if losses else None)
        and numbers["losses"] == losses
        and numbers["rates"] == list(swept.rates)
    )
    assert numbers["suggestion"]["rate"] == found.rate and numbers["suggestion"]["why"] == found.why


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [7, 50])
def test_the_plotted_schedule_is_that_of_the_training(name: str, steps: int) -> None:
    made = config(schedule__name=name, schedule__warmup_steps=5, schedule__reference_steps=10, steps=steps)
    with made.unlocked():
        made.schedule.start = 1e-6
    numbers, rates = range_test.schedule_points(made)
    schedule = make_schedule(made)
    np.testing.assert_array_equal(numbers, np.arange(1, steps + 1))
    np.testing.assert_allclose(rates, [schedule(i) for i in range(steps)], rtol=1e-5, atol=1e-12)


def test_very_long_schedules_are_thinned_from_end_to_end() -> None:
    made = config(schedule__name="cosine", schedule__warmup_steps=1000, steps=2_000_000)
    steps, rates = range_test.schedule_points(made)
    assert len(steps) <= range_test.DRAWN + 1 and (steps[0], steps[-1]) == (1, 2_000_000)
    assert 1000 in steps and rates[steps == 1000] == np.max(rates)  # the end of the warm-up
    schedule = make_schedule(made)
    chosen = [0, len(steps) // 2, -1]
    np.testing.assert_allclose(rates[chosen], [schedule(int(steps[i]) - 1) for i in chosen], rtol=1e-4, atol=1e-12)


def test_the_places_that_are_named() -> None:
    ramp = np.asarray([1.0, 2.0, 3.0, 3.0, 2.0])
    steps = np.arange(1, 6)
    assert plots.schedule_notes(steps, ramp, 3) == [(3, 3.0, "peak and end of the warm-up"), (5, 2.0, "last")]
    assert plots.schedule_notes(steps, ramp, 4)[1] == (4, 3.0, "end of the warm-up")
    assert plots.schedule_notes(steps, np.sort(ramp)[::-1], 0) == [(1, 3.0, "peak"), (5, 1.0, "last")]
    assert plots.schedule_notes(steps, steps * 1.0, 100) == [(5, 5.0, "peak and last")]  # warms up to its end
