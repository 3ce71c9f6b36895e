"""The loop on a small problem: cutting it into dispatches changes nothing, and metrics are means."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.data.pipeline import ResidentFeed
from archirf_jax.errors import UserError
from archirf_jax.processes import importance
from archirf_jax.tasks.diffusion import Diffusion
from archirf_jax.training import devices, ema, flops, guard
from archirf_jax.training.advance import Advance
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.loop import Loop
from archirf_jax.training.meter import STOPPED, Meter, Stopped
from archirf_jax.training.preemption import StopRequest
from archirf_jax.training.profiling import Profile
from archirf_jax.training.state import TrainState, purpose_key
from archirf_jax.training.writers import read_metrics
from configs import dit_ddpm, dit_rf

Small = tuple[Diffusion, ResidentFeed, Advance]


@pytest.fixture(scope="module")
def small() -> Small:
    config = dit_rf.get_config()
    config.update_from_flattened_dict(
        {"model.hidden_size": 16, "model.depth": 1, "batch_size": 8, "data.num_classes": 10, "sample.steps": 3}
    )
    images = jax.random.randint(jax.random.key(0), (40, 8, 8, 1), 0, 256).astype(jnp.uint8)
    feed = ResidentFeed(images, jnp.arange(40, dtype=jnp.int32) % 10, batch_size=8, seed=0, flip=True, dispatch=6)
    task = Diffusion(config)
    return task, feed, Advance(task, feed, seed=0)


def run(small: Small, cuts: list[int]) -> tuple[TrainState, list[float]]:
    task, feed, advance = small
    state, step, losses = jax.jit(lambda: task.init(purpose_key(0, "init")))(), 0, []
    for n in cuts:
        state, rows = advance(state, feed.chunk(step, n), n)
        losses += np.asarray(rows["loss"])[:n, 0].tolist()
        step += n
    return state, losses


def assert_same(first: TrainState, second: TrainState) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), first, second)


def test_the_same_bits_however_a_run_is_cut_into_dispatches(small: Any) -> None:
    whole, losses = run(small, [6, 6])
    for cuts in ([1] * 12, [5, 2, 4, 1], [6, 1, 5]):
        cut, same = run(small, cuts)
        assert same == losses
        assert_same(whole, cut)


def test_loss_falls_and_every_parameter_moves(small: Any) -> None:
    task = small[0]
    start = task.init(purpose_key(0, "init"))
    state, losses = run(small, [6] * 30)
    assert np.mean(losses[-30:]) < 0.9 * np.mean(losses[:6])
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), start.params, state.params)
    still = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(moved) if not leaf]
    assert not still
    assert int(state.step) == 180


class Probe:
    """A task that reports what it is given instead of learning."""

    def init(self, key: jax.Array) -> TrainState:
        return TrainState(jnp.int32(0), {"w": jnp.zeros(1)}, {"w": jnp.zeros(1)}, (), guard=guard.init(False))

    def step(self, state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        seen = {
            "loss": jax.random.uniform(key),
            "image": jnp.vdot(batch.image, jnp.sin(jnp.arange(512.0)).reshape(8, 8, 8, 1)),
        }
        return state.replace(step=state.step + 1), seen


def test_every_step_has_a_key_of_its_own_that_follows_from_seed_and_step_alone(small: Any) -> None:
    def keys_seen(seed: int, cuts: list[int]) -> list[float]:
        advance, state, seen = Advance(Probe(), small[1], seed), Probe().init(jax.random.key(0)), []  # type: ignore[arg-type]
        for n in cuts:
            state, rows = advance(state, small[1].chunk(0, n), n)
            seen += np.asarray(rows["loss"])[:n].tolist()
        return seen

    first = keys_seen(0, [6, 4])
    assert len(set(first)) == 10
    assert keys_seen(0, [1, 6, 3]) == first
    assert not set(keys_seen(1, [6, 4])) & set(first)


def test_the_same_images_are_flipped_anew_at_each_step(small: Any) -> None:
    feed = small[1]
    one = ResidentFeed(
        jnp.repeat(feed.images[:1], 8, axis=0), feed.labels[:8], batch_size=8, seed=0, flip=True, dispatch=6
    )
    state, rows = Advance(Probe(), one, 0)(Probe().init(jax.random.key(0)), one.chunk(0, 6), 6)  # type: ignore[arg-type]
    assert len(set(np.asarray(rows["image"]).tolist())) == 6


def test_the_average_follows_the_parameters_by_its_formula(small: Any) -> None:
    start = small[0].init(purpose_key(0, "init"))
    after, _ = run(small, [1])
    expected = ema.update(start.ema, after.params, ema.warmed(0.998)(start.step))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), after.ema, expected)
    moved = [float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (start.ema, after.ema)), strict=True)]
    assert max(moved) > 1e-6


def test_a_run_that_draws_times_by_their_losses_goes_on_bit_for_bit(small: Any, tmp_path: pathlib.Path) -> None:
    config, feed = dit_ddpm.get_config(), small[1]
    config.update_from_flattened_dict(
        {"model.hidden_size": 16, "model.depth": 0, "data.num_classes": 10, "sample.steps": 3}
        | {"process.time_sampling": "loss_second_moment", "process.respacing": "3"}
        | {"process.variance": "fixed_small", "model.learn_sigma": False}
    )
    task = Diffusion(config)
    advance, init = Advance(task, feed, seed=0), jax.jit(lambda: task.init(purpose_key(0, "init")))

    def go(state: TrainState, last: int) -> TrainState:
        state = jax.device_put(state, jax.devices()[0])  # placed alike, or each would be compiled for
        while (step := int(state.step)) < last:
            n = min(feed.dispatch, last - step)
            state, _ = advance(state, feed.chunk(step, n), n)
        return state

    def reopened() -> TrainState:
        found = Checkpoints(tmp_path, keep=1).restore(jax.eval_shape(init))
        assert found is not None
        return found

    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(go(init(), 14), {})
    checkpoints.wait()
    checkpoints.close()
    # By now every time has all the losses that count, so the memory decides which times are drawn.
    assert int(jnp.min(reopened().memory.written)) >= importance.HISTORY
    whole = go(init(), 24)
    assert int(jnp.sum(whole.memory.written)) == 24 * feed.batch_size
    assert_same(go(reopened(), 24), whole)
    forgetful = go(reopened().replace(memory=task.process.init_memory()), 24)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (forgetful.params, whole.params)), strict=True))


def test_no_step_reuses_the_noise_of_another_and_seeds_differ(small: Any) -> None:
    task, feed, _ = small
    frozen = task.init(purpose_key(0, "init"))
    batch = feed.batch(feed.chunk(0, 1), jnp.int32(0), jax.random.key(0))
    keys = [jax.random.fold_in(purpose_key(seed, "step"), step) for seed in (0, 1) for step in range(3)]
    loss = jax.jit(lambda key: task.step(frozen, batch, key)[1]["loss"][0])
    losses = [float(loss(key)) for key in keys]
    assert len(set(losses)) == len(losses)


def pairs(*values: float, weight: float = 1.0) -> np.ndarray:
    return np.stack([np.asarray(values) * weight, np.full(len(values), weight)], axis=1)


def test_a_meter_reports_means_at_its_period_and_reads_one_dispatch_late() -> None:
    reported: list[tuple[int, dict[str, float]]] = []
    meter = Meter(lambda step, row: reported.append((step, row)), every=4, end=7, batch_size=10)
    meter.add(2, 2, {"loss": pairs(1.0, 2.0)})
    meter.add(4, 2, {"loss": pairs(3.0, 4.0)})
    assert not reported
    meter.settle()
    assert reported[0][0] == 4 and reported[0][1]["loss"] == 2.5
    meter.add(7, 3, {"loss": pairs(1.0, 2.0, 6.0, 100.0)})  # rows beyond the dispatch's steps mean nothing
    meter.settle()
    assert reported[1][0] == 7 and reported[1][1]["loss"] == 3.0


def test_means_are_sums_over_weights_and_what_has_no_weight_is_not_told() -> None:
    reported: list[dict[str, float]] = []
    meter = Meter(lambda step, row: reported.append(row), every=2, end=2, batch_size=10)
    uneven = np.concatenate([pairs(1.0, weight=1.0), pairs(4.0, weight=3.0)])
    meter.once["compile_seconds"] = 5.0
    meter.add(2, 2, {"a": uneven, "b": np.zeros((2, 2))})
    meter.settle()
    assert reported[0]["a"] == pytest.approx(13 / 4) and "b" not in reported[0]
    assert reported[0]["compile_seconds"] == 5.0 and not meter.once


def test_a_meter_that_goes_on_reports_the_mean_that_one_alone_would_have() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random(50) * 10.0 ** rng.integers(-9, 9, 50)).tolist()  # whose sum depends on how they are grouped
    reported: list[dict[str, float]] = []
    alone, first, second = (Meter(lambda step, row: reported.append(row), 50, 50, batch_size=1) for _ in range(3))
    alone.add(50, 50, {"loss": pairs(*values, weight=3.0)})
    alone.settle()
    first.add(23, 23, {"loss": pairs(*values[:23], weight=3.0)})
    first.settle()
    second.go_on({}, json.loads(json.dumps(first.unreported())))
    second.add(50, 27, {"loss": pairs(*values[23:], weight=3.0)})
    second.settle()
    assert len(reported) == 2 and reported[0] == reported[1]
    assert first.unreported() and second.unreported() == {}


def test_a_meter_leaves_pauses_and_the_first_dispatch_out_of_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("archirf_jax.training.meter.time.perf_counter", lambda: now[0])
    reported: list[dict[str, float]] = []
    meter = Meter(lambda step, row: reported.append(row), every=3, end=9, batch_size=10)
    meter.ideal_seconds = 0.25
    for step, seconds in ((1, 100.0), (2, 0.5), (3, 0.5)):
        if step == 3:
            with meter.paused():
                now[0] += 1000
            with meter.waiting():
                now[0] += 0.25
                seconds -= 0.25
        now[0] += seconds
        meter.add(step, 1, {"loss": pairs(1.0)})
        meter.settle()
    assert reported[0]["seconds_per_step"] == pytest.approx(0.5)
    assert reported[0]["images_per_second"] == pytest.approx(20)
    assert reported[0]["data_wait"] == pytest.approx(0.25)
    assert reported[0]["flops_utilisation"] == pytest.approx(0.5)


def test_the_step_that_was_not_done_is_named_with_its_reason() -> None:
    reported: list[tuple[int, dict[str, float]]] = []
    meter = Meter(lambda step, row: reported.append((step, row)), every=4, end=8, batch_size=10)
    reasons = pairs(0.0, 0.0, guard.JUMP, 0.0)
    meter.add(14, 4, {"loss": pairs(1.0, 2.0, 7.0, 7.0), STOPPED: reasons})
    with pytest.raises(Stopped) as stopped:
        meter.settle()
    assert stopped.value.step == 12 and stopped.value.reason == guard.JUMP
    assert reported == [(12, {"loss": 1.5})]  # of the steps since the last row that were done


def looped(small: Any, workdir: pathlib.Path, **fields: Any) -> Loop:
    config = dit_rf.get_config()
    config.update_from_flattened_dict({"steps": 4, "batch_size": 8, "mesh.data": 1} | fields)
    return Loop(small[0], small[1], config, workdir, "again", StopRequest(), Profile(workdir))


def test_a_device_that_is_too_small_is_told_with_what_helps(
    small: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> float:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.")

    loop = looped(small, tmp_path)
    monkeypatch.setattr(loop.advance, "compile", full)
    with pytest.raises(UserError, match="memory does not suffice; python -m archirf_jax.plan says .*remat.*: none$"):
        loop.run()


def test_a_best_metric_that_nobody_tells_is_refused_and_one_without_a_value_in_some_row_is_not(
    small: Any, tmp_path: pathlib.Path
) -> None:
    best = {"checkpoint.keep_best": 1, "log.every_steps": 1, "sample.every_steps": 9}
    loop = looped(small, tmp_path / "a", **best, **{"checkpoint.best_metric": "los"})
    with pytest.raises(UserError, match="^config.checkpoint.best_metric: there is no 'los' .did you mean 'loss'"):
        loop.run()
    looped(small, tmp_path / "b", **best, **{"checkpoint.best_metric": "loss_t/0_0.25"}).run()
    rows = read_metrics(tmp_path / "b")
    assert len(rows) == 4 and any("loss_t/0_0.25" not in row for row in rows)


def test_utilisation_counts_three_forward_passes_of_the_batch_against_the_peak_of_all_devices(
    small: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, feed, _ = small
    config = dit_rf.get_config()
    config.update_from_flattened_dict({"batch_size": 8, "mesh.data": 4})
    loop = Loop(task, feed, config, tmp_path, "", StopRequest(), Profile(tmp_path))
    loop.state = jax.eval_shape(task.init, purpose_key(0, "init"))
    assert loop._ideal_seconds(feed.chunk(0, 1)) is None  # nobody knows the peak of this CPU
    known = devices.Device("known", "gpu", 1, {"float32": 1e9}, ())
    monkeypatch.setattr("archirf_jax.training.loop.devices.of", lambda device: known)
    x, t, y = jnp.zeros((8, 8, 8, 1)), jnp.zeros(8), jnp.zeros(8, jnp.int32)
    forward = flops.count(lambda p: task.model.apply({"params": p}, x, t, y), loop.state.params)
    assert loop._ideal_seconds(feed.chunk(0, 1)) == pytest.approx(3 * forward / 4e9)
    config.model.dtype = "bfloat16"
    assert loop._ideal_seconds(feed.chunk(0, 1)) is None
