"""The range test on losses whose limits are known in closed form, and what it makes of curves of every form."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.data.pipeline import Batch, ResidentFeed
from archirf_jax.errors import UserError
from archirf_jax.training import range_test
from archirf_jax.training.optimizers import SCHEDULES, make_schedule
from archirf_jax.training.range_test import Sweep
from archirf_jax.training.state import TrainState
from archirf_jax.training.update import Losses, Metrics, Update
from archirf_jax.visuals import plots
from configs import default

STEPS = 60
CURVATURE, START = 2.0, 0.5


class Quadratic:
    """curvature / 2 |w|^2 + noise z w for each example, z drawn anew each step; NaN where |w| is above a limit."""

    update: Update

    def __init__(self, curvature: float = CURVATURE, noise: float = 0.0, limit: float = np.inf) -> None:
        self.curvature, self.noise, self.limit = curvature, noise, limit

    def init(self, key: jax.Array) -> TrainState:
        del key
        return self.update.init({"layer": {"kernel": jnp.full((1, 1), START)}})

    def step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        return self.update(state, self.draw(state, batch, key), self.losses(key), self.constrained)

    def draw(self, state: TrainState, batch: Batch, key: jax.Array) -> jax.Array:
        del state
        return jax.random.normal(key, batch.label.shape)

    def losses(self, key: jax.Array) -> Losses:
        def losses(params: Any, z: jax.Array, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            w = params["layer"]["kernel"][0, 0]
            fine = jnp.where(jnp.abs(w) > self.limit, jnp.nan, 0.5 * self.curvature * w**2)
            return fine + self.noise * z * w, {}

        return losses

    def constrained(self, params: Any) -> Any:
        return params


def sweep(task: Quadratic, low: float, high: float, steps: int = STEPS, **changes: Any) -> Sweep:
    config = default.get_config()
    changes = {"batch_size": 16, "optimizer__clip_norm": 0.0, "mesh__data": 1} | changes
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    config = range_test.prepare(config, steps)
    feed = ResidentFeed(jnp.zeros((32, 1, 1, 1), jnp.uint8), jnp.zeros(32, jnp.int32), config.batch_size, 0, False, 4)
    return range_test.sweep(task, feed, config, low, high, steps)


def of_curve(losses: Any, first: float = 1.0, ended: str = "") -> Sweep:
    """Of these smoothed losses at the rates 1, 2, 4, ..."""
    losses = np.asarray(losses, float)
    return Sweep(2.0 ** np.arange(len(losses)), losses, first, losses, ended)


def test_the_rate_grows_by_equal_factors_from_the_first_to_the_last() -> None:
    schedule = range_test.geometric(1e-6, 1.0, 300)
    rates = np.asarray([schedule(i) for i in range(300)])
    assert rates[0] == pytest.approx(1e-6) and rates[-1] == pytest.approx(1.0)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 1e6 ** (1 / 299), rtol=1e-9)


def test_gradient_descent_is_told_to_stay_below_two_over_the_curvature() -> None:
    """Adam without memory whose epsilon is large is gradient descent of rate / epsilon."""
    eps, curvature = 1e3, 4.0
    fields = {"optimizer__eps": eps, "optimizer__b1": 0.0, "optimizer__b2": 0.0, "optimizer__name": "adam"}
    found = range_test.suggest(sweep(Quadratic(curvature, noise=0.3), 10.0, 1e5, **fields))
    limit = 2 * eps / curvature
    assert found.edge is not None and found.rate is not None and found.steepest is not None and found.lowest is not None
    assert limit / 2 < found.edge < 2 * limit  # what diverges takes a few steps to show
    assert found.rate == pytest.approx(found.edge / 10, rel=0.05)
    assert found.steepest <= found.lowest <= found.edge


def test_adam_is_told_the_same_whatever_the_scale_of_the_loss() -> None:
    """Its steps are about as long as the rate, so the suggestion is below the way to go."""
    sweeps = [sweep(Quadratic(CURVATURE * scale, noise=scale), 1e-3, 1e3, 200) for scale in (1.0, 64.0)]
    found = [range_test.suggest(swept) for swept in sweeps]
    assert found[0].rate is not None and START / 100 < found[0].rate < START
    assert found[0].rate == found[1].rate


def test_what_diverges_ends_the_sweep() -> None:
    swept = sweep(Quadratic(), 1e-2, 1e4)
    assert swept.ended == range_test.TOO_HIGH and len(swept.rates) < STEPS
    above = swept.smoothed - np.minimum.accumulate(swept.smoothed)
    assert above[-1] > range_test.DIVERGED * swept.first and np.all(above[:-1] <= range_test.DIVERGED * swept.first)


def test_what_is_not_finite_ends_the_sweep_and_is_left_out() -> None:
    swept = sweep(Quadratic(limit=0.6), 1e-4, 1e4)
    assert swept.ended == range_test.NOT_FINITE and 0 < len(swept.rates) < STEPS
    assert np.all(np.isfinite(swept.losses))
    assert range_test.suggest(swept).rate is not None
    hopeless = sweep(Quadratic(limit=0.1), 1e-4, 1.0)  # from the start
    assert (hopeless.ended, len(hopeless.rates)) == (range_test.NOT_FINITE, 0)
    assert range_test.suggest(hopeless).rate is None


def test_the_watched_loss_changes_with_the_parameters_alone_however_the_batch_is_divided() -> None:
    """Another draw each step would move it by about noise w / sqrt(16), rate 1e-9 does not."""
    task = Quadratic(noise=1.0)
    swept, divided = (sweep(task, 1e-9, 1e-8, accumulation=parts) for parts in (1, 2))
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
    assert (found.edge, found.rate) == (4.0, 0.4) and "--max" in found.why
    broken = range_test.suggest(of_curve([0.9, 0.5, 0.3], ended=range_test.NOT_FINITE))
    assert broken.rate == 0.4 and "--max" not in broken.why


def test_smoothing_keeps_constants_and_forgets_at_its_pace() -> None:
    np.testing.assert_allclose(range_test.smooth([3.0] * 9, 5.0), 3.0)
    assert range_test.smooth([1.0, 7.0, 2.0], 1.0) == [1.0, 7.0, 2.0]
    assert range_test.smooth([1.0, 3.0], 2.0)[1] == pytest.approx((0.5 * 1 + 3) / 1.5)
    weights = np.asarray(range_test.smooth([1.0] + [0.0] * 400, 10.0)) / np.asarray(range_test.smooth([1.0], 10.0))
    assert weights[10] == pytest.approx(0.9**10 * 0.1 / (1 - 0.9**11))


def test_a_sweep_leaves_the_configuration_as_it_was() -> None:
    config = default.get_config()
    config.ema.more_decays, config.guard.jump = (0.9,), 5.0
    before = config.to_dict()
    made = range_test.prepare(config, 300)
    assert config.to_dict() == before
    assert (made.ema.more_decays, made.guard.jump) == ((), 0.0) and made.steps > 300
    assert made.optimizer.to_dict() == before["optimizer"]


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (1.0, 0.1), (0.0, 1.0), (-1.0, 1.0), (1e-3, np.inf)])
def test_rates_that_are_no_range_are_refused(low: float, high: float) -> None:
    with pytest.raises(UserError, match="--min: .* --max="):
        range_test.check(low, high)


@pytest.mark.parametrize("losses", [[0.9, 0.5, 0.2, 0.4, 7.0], [1.0, 1.0], []])
def test_plot_and_numbers_are_written_side_by_side(losses: list[float], tmp_path: pathlib.Path) -> None:
    swept = of_curve(losses, *(() if losses else (np.nan, range_test.NOT_FINITE)))
    found = range_test.conclude(swept, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "new" / "a.json").read_text())
    assert (
        told["first"] == (1.0 if losses else None) and told["losses"] == losses and told["rates"] == list(swept.rates)
    )
    assert told["suggestion"]["rate"] == found.rate and told["suggestion"]["why"] == found.why


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [7, 50])
def test_the_plotted_schedule_is_that_of_the_training(name: str, steps: int) -> None:
    config = default.get_config()
    config.update_from_flattened_dict({"schedule.name": name, "schedule.warmup_steps": 5, "steps": steps})
    config.schedule.reference_steps = 10
    numbers, rates = range_test.schedule_points(config)
    schedule = make_schedule(config)
    np.testing.assert_array_equal(numbers, np.arange(1, steps + 1))
    np.testing.assert_allclose(rates, [schedule(i) for i in range(steps)], rtol=1e-5, atol=1e-12)


def test_very_long_schedules_are_thinned_from_end_to_end() -> None:
    config = default.get_config()
    config.update_from_flattened_dict({"schedule.name": "cosine", "steps": 2_000_000})
    steps, rates = range_test.schedule_points(config)
    assert len(steps) <= range_test.DRAWN + 1 and (steps[0], steps[-1]) == (1, 2_000_000)
    assert 1000 in steps and rates[steps == 1000] == np.max(rates)  # the end of the warm-up
    schedule = make_schedule(config)
    chosen = [0, len(steps) // 2, -1]
    np.testing.assert_allclose(rates[chosen], [schedule(int(steps[i]) - 1) for i in chosen], rtol=1e-4, atol=1e-12)


def test_the_places_that_are_named() -> None:
    ramp = np.asarray([1.0, 2.0, 3.0, 3.0, 2.0])
    steps = np.arange(1, 6)
    assert plots.schedule_notes(steps, ramp, 3) == [(3, 3.0, "peak and end of the warm-up"), (5, 2.0, "last")]
    assert plots.schedule_notes(steps, ramp, 4)[1] == (4, 3.0, "end of the warm-up")
    assert plots.schedule_notes(steps, np.sort(ramp)[::-1], 0) == [(1, 3.0, "peak"), (5, 1.0, "last")]
    assert plots.schedule_notes(steps, steps * 1.0, 100) == [(5, 5.0, "peak and last")]  # warms up to its end
