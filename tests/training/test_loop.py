"""The loop on small problems: cutting it into dispatches or restarts changes nothing, and what it writes is its own."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
import tempfile
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from archirf_jax.contracts import TrainState
from archirf_jax.errors import UserError
from archirf_jax.training import devices, ema, flops, start
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.loop import Loop, train
from archirf_jax.training.preemption import StopRequest
from archirf_jax.training.profiling import Profile
from archirf_jax.training.state import purpose_key
from archirf_jax.training.step_runner import StepRunner
from archirf_jax.training.writers import Row, read_metrics, rows_without_times
from tests.training.toys import Adversarial, Denoising, Feed, config, same

CHANGES: dict[str, Any] = {
    "steps": 12,
    "optimizer__learning_rate": 0.01,
    "ema__sigma_rel": (0.1,),
    "ema__snapshot_steps": 4,
    "checkpoint__every_steps": 5,
    "sample__every_steps": 6,
}

# Of all trainings of a task, so that they share a compiled program.
OWN: dict[Any, Any] = {
    Denoising: {"guard__patience": 2},
    Adversarial: {"networks": {"critic": {"guard": {"patience": 2}}}},
}


def configured(task: Any, **changes: Any) -> Any:
    return config(**CHANGES | OWN[task] | changes)


@pytest.fixture(scope="module")
def runner() -> StepRunner:
    return StepRunner(Denoising(config(optimizer__learning_rate=0.01)), Feed(), seed=0)


def run(runner: StepRunner, cuts: list[int]) -> tuple[TrainState, list[float]]:
    task, feed = Denoising(config(optimizer__learning_rate=0.01)), Feed()
    state, step, losses = jax.jit(lambda: task.init(purpose_key(0, "init"), {}))(), 0, list[float]()
    for most in cuts:
        chunk, n = feed.chunk(step, most)
        state, rows = runner(state, chunk, n)
        losses += np.asarray(rows["loss"])[:n, 0].tolist()
        step += n
    return state, losses


def test_the_same_bits_however_a_run_is_cut_into_dispatches(runner: StepRunner) -> None:
    whole, losses = run(runner, [6, 6])
    for cuts in ([1] * 12, [5, 2, 4, 1], [6, 1, 5]):
        cut, again = run(runner, cuts)
        assert again == losses and same(whole, cut)


def test_loss_falls_and_every_parameter_moves(runner: StepRunner) -> None:
    start = Denoising(config()).init(purpose_key(0, "init"), {}).networks["net"]
    state, losses = run(runner, [6] * 30)
    assert np.mean(losses[-30:]) < 0.9 * np.mean(losses[:6]) and int(state.step) == 180
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start.params, state.networks["net"].params)
    assert all(jax.tree.leaves(moved))


def test_the_average_follows_the_parameters_by_its_formula(runner: StepRunner) -> None:
    start = Denoising(config()).init(purpose_key(0, "init"), {}).networks["net"]
    after = run(runner, [1])[0].networks["net"]
    expected = ema.update(start.averages["ema"], after.params, ema.warmed(0.9999)(start.guard.updates))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), after.averages["ema"], expected)
    assert not same(start.averages["ema"], after.averages["ema"])


class Probe(Denoising):
    """A task that reports what it is given instead of learning."""

    def step(self, state: TrainState, frozen: Any, batch: Any, key: jax.Array) -> tuple[TrainState, Any]:
        seen = {"key": jax.random.uniform(key), "image": jnp.vdot(batch["image"], jnp.sin(jnp.arange(32.0)))}
        return dataclasses.replace(state, step=state.step + 1), seen


def test_every_step_has_keys_of_its_own_that_follow_from_seed_and_step_alone() -> None:
    class Still(Feed):
        """The same images at all steps, mirrored anew."""

        def chunk(self, step: int, most: int) -> tuple[Any, int]:
            chunk, n = super().chunk(0, most)
            return np.stack([chunk[0]] * 6), n

    def seen(seed: int, cuts: list[int], name: str) -> list[float]:
        task, feed, found = Probe(config()), Still(), list[float]()
        runner, state = StepRunner(task, feed, seed), task.init(jax.random.key(0), {})
        for most in cuts:
            state, rows = runner(state, *feed.chunk(0, most))
            found += np.asarray(rows[name])[:most].tolist()
        return found

    for name in ("key", "image"):
        first = seen(0, [6, 4], name)
        assert len(set(first)) == 10 and seen(0, [1, 6, 3], name) == first
        assert not set(seen(1, [6, 4], name)) & set(first)


def test_no_setting_of_jax_changes_the_keys_of_a_run() -> None:
    before = jax.random.key_data(purpose_key(3, "step"))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(jax.random.key_data(purpose_key(3, "step")), before)


class Rows:
    """A writer of somebody's own."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, Row]] = []
        self.closed = False

    def write(self, step: int, row: Row) -> None:
        self.rows.append((step, row))

    def close(self) -> None:
        self.closed = True


@functools.cache
def programs(task: Any, fields: str) -> dict[Any, Any]:
    """Compiled programs of trainings that are alike but for their lengths and periods."""
    return {}


def sharing(task: Any, made: Any, *frozen: str) -> Any:
    """In place of StepRunner: with the programs of earlier trainings that are alike."""
    deciding = [made[name] for name in ("optimizer", "schedule", "ema", "guard", "networks", "accumulation", "mesh")]

    def runner(*arguments: Any) -> StepRunner:
        own = StepRunner(*arguments)
        own._compiled = programs(task, f"{deciding} {frozen}")
        return own

    return mock.patch("archirf_jax.training.upkeep.StepRunner", runner)


def trained(workdir: pathlib.Path, task: Any = Denoising, feed: Feed | None = None, **changes: Any) -> bool:
    options = {name: changes.pop(name) for name in ("writers", "still_ours", "frozen") if name in changes}
    made = configured(task, **changes)
    workdir.mkdir(exist_ok=True)
    with sharing(task, made, *options.get("frozen", {})):
        return train(task(made), feed or Feed(), made, workdir, again="again", **options)


@functools.cache
def whole(task: Any = Denoising) -> tuple[pathlib.Path, Rows]:
    """(the directory of a training that nothing interrupted, what its writer was given)."""
    workdir, writer = pathlib.Path(tempfile.mkdtemp()), Rows()
    assert trained(workdir, task, writers=[writer])
    return workdir, writer


def copied(workdir: pathlib.Path, task: Any = Denoising, until: int = 12) -> pathlib.Path:
    """Such a training, cut after a step."""
    shutil.copytree(whole(task)[0], workdir, dirs_exist_ok=True)
    for step in (10, 12):
        if step > until:
            shutil.rmtree(workdir / "checkpoints" / str(step))
    return workdir


def saved(workdir: pathlib.Path, task: Any = Denoising, step: int | None = None, **changes: Any) -> TrainState:
    like = jax.eval_shape(lambda: task(configured(task, **changes)).init(jax.random.key(0), {}))
    checkpoints = Checkpoints(workdir / "checkpoints", keep=0)
    checkpoints.forget_after(step or 10**6)
    state = checkpoints.restore(like)
    checkpoints.close()
    assert state is not None
    return state


@pytest.mark.parametrize("task", [Denoising, pytest.param(Adversarial, marks=pytest.mark.slow)])
def test_a_run_that_was_cut_goes_on_bit_for_bit(task: Any, tmp_path: pathlib.Path) -> None:
    (complete, writer), cut = whole(task), copied(tmp_path, task, until=5)
    assert trained(cut, task)
    assert same(saved(cut, task), saved(complete, task))
    rows = rows_without_times(complete)
    assert rows == rows_without_times(cut) and [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [step for step, _ in writer.rows] == [2, 4, 6, 8, 10, 12] and writer.closed
    assert Checkpoints(complete / "snapshots").steps() == Checkpoints(cut / "snapshots").steps() == [12, 8, 4]
    pictures = {path.name for path in complete.iterdir()} & {"samples", "progress.gif", "denoising.gif"}
    assert pictures == (set() if task is Adversarial else {"samples", "progress.gif", "denoising.gif"})


def test_snapshots_of_steps_that_are_done_again_in_another_way_are_replaced(tmp_path: pathlib.Path) -> None:
    again = copied(tmp_path, until=5)
    assert trained(again, feed=Feed(bad=(6,)))
    network = saved(again).networks["net"]
    like = jax.eval_shape(lambda: network.params)
    readers = (Checkpoints(workdir / "snapshots") for workdir in (whole()[0], again))
    old, new = (reader.read("ema_0.100", like, max(reader.steps())) for reader in readers)
    assert not same(old, new) and same(new, network.averages["ema_0.100"])


def test_snapshots_are_taken_when_nothing_else_is_due(tmp_path: pathlib.Path) -> None:
    assert trained(tmp_path, log__every_steps=12)
    assert Checkpoints(tmp_path / "snapshots").steps() == [12, 8, 4]


def test_the_main_networks_average_is_in_snapshots() -> None:
    workdir, _ = whole(Adversarial)
    reader, network = Checkpoints(workdir / "snapshots"), saved(workdir, Adversarial).networks["zenerator"]
    assert reader.networks(12) == ["zenerator"]
    like = jax.eval_shape(lambda: network.params)
    assert same(reader.read("ema_0.100", like, 12), network.averages["ema_0.100"])


def test_frozen_parameters_change_the_training_and_are_part_of_no_checkpoint(tmp_path: pathlib.Path) -> None:
    assert trained(tmp_path, frozen={"shift": np.ones(4, np.float32)})
    assert not same(saved(tmp_path), saved(whole()[0]))
    items = {path.name for path in (tmp_path / "checkpoints" / "12").iterdir() if path.is_dir()}
    assert not any("shift" in item or "frozen" in item for item in items)


@pytest.mark.parametrize("lost", ["checkpoints", "damaged"])
def test_a_run_that_has_lost_its_checkpoints_does_not_begin_anew(lost: str, tmp_path: pathlib.Path) -> None:
    shutil.rmtree(copied(tmp_path) / "checkpoints")
    if lost == "damaged":
        (tmp_path / start.MARK).unlink()
        (tmp_path / "damaged" / "7").mkdir(parents=True)
    before = {path: path.read_text() for path in tmp_path.rglob("*.jsonl")}
    with pytest.raises(UserError):
        trained(tmp_path)
    assert {path: path.read_text() for path in tmp_path.rglob("*.jsonl")} == before


def test_a_run_that_never_had_a_checkpoint_begins_anew(tmp_path: pathlib.Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}\n')
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "00000004.png").write_text("")
    assert trained(tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path)][-1] == 12


def test_all_checkpoints_damaged_is_not_a_beginning(tmp_path: pathlib.Path) -> None:
    for folder in (copied(tmp_path) / "checkpoints").iterdir():
        (folder / "checksums.json").unlink()
    rows = read_metrics(tmp_path)
    with pytest.raises(UserError) as caught:
        trained(tmp_path)
    assert "damaged" in str(caught.value) and read_metrics(tmp_path) == rows


def test_the_mark_of_a_checkpoint_is_not_made_through_a_link(tmp_path: pathlib.Path) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    (copied(run, until=10) / start.MARK).unlink()
    (run / start.MARK).symlink_to(victim)
    assert trained(run)
    assert not victim.exists() and (run / start.MARK).is_file()


@pytest.mark.parametrize("calls", range(1, 8))
def test_nothing_is_written_into_a_directory_that_is_anothers_by_now(calls: int, tmp_path: pathlib.Path) -> None:
    made: list[int] = []

    def still_ours() -> None:
        made.append(len(made))
        if len(made) == calls:
            raise UserError("it is another run's by now")

    with pytest.raises(UserError) as caught:
        trained(tmp_path, still_ours=still_ours, checkpoint__required=False)
    assert "another run's" in str(caught.value) and len(made) == calls


def test_a_directory_is_asked_for_before_a_checkpoint_is_saved(tmp_path: pathlib.Path) -> None:
    made: list[int] = []

    def still_ours() -> None:
        made.append(len(made))
        if len(made) == 2:  # the first time is at the start
            raise UserError("it is another run's by now")

    with pytest.raises(UserError):
        trained(tmp_path, still_ours=still_ours, log__every_steps=1000, sample__every_steps=1000)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def looped(workdir: pathlib.Path, task: Any = Denoising, **changes: Any) -> Loop:
    made = configured(task, **{"steps": 4} | changes)
    with sharing(task, made):
        return Loop(task(made), Feed(), made, workdir, None, "again", StopRequest(), Profile(workdir))


def test_a_device_that_is_too_small_is_an_error_with_what_helps(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> float:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.")

    loop = looped(tmp_path)
    monkeypatch.setattr(loop.runner, "compile", full)
    with pytest.raises(UserError) as caught:
        loop.run()
    assert "remat" in str(caught.value)


def test_a_best_metric_that_does_not_exist_is_refused_and_one_without_a_value_in_some_row_is_not(
    tmp_path: pathlib.Path,
) -> None:
    best = {"checkpoint__keep_best": 1, "log__every_steps": 1}
    with pytest.raises(UserError) as caught:
        looped(tmp_path / "a", **best, checkpoint__best_metric="los").run()
    assert caught.value.field == "checkpoint.best_metric" and "'loss'" in str(caught.value)
    looped(tmp_path / "b", Adversarial, **best, checkpoint__best_metric="critic/loss").run()
    assert len(read_metrics(tmp_path / "b")) == 4


def test_a_network_need_not_have_a_dtype(tmp_path: pathlib.Path) -> None:
    made = configured(Denoising, steps=2)
    with made.unlocked():
        del made.model.dtype
    with sharing(Denoising, made):
        Loop(Denoising(made), Feed(), made, tmp_path, None, "again", StopRequest(), Profile(tmp_path)).run()
    assert len(read_metrics(tmp_path)) > 0


def test_utilisation_counts_three_forward_passes_of_all_networks_against_the_peak_of_all_devices(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = looped(tmp_path, Adversarial, mesh__data=4)
    loop.state = jax.eval_shape(lambda: loop.task.init(purpose_key(0, "init"), {}))
    chunk, _ = loop.feed.chunk(0, 1)
    assert loop.ideal_seconds(chunk) is None  # nobody knows the peak of this CPU
    known = devices.Device("known", "gpu", 1, {"float32": 1e9}, (), link=1.0)
    monkeypatch.setattr("archirf_jax.training.loop.devices.of", lambda device: known)
    x, task = jnp.zeros((8, 4)), Adversarial(config())
    params = {name: network.params for name, network in loop.state.networks.items()}
    made = flops.count(lambda p: task.model.apply({"params": p}, x), params["zenerator"]["decoder"])
    scored = flops.count(lambda p: task.head.apply({"params": p}, x), params["critic"]["head"])
    assert loop.ideal_seconds(chunk) == pytest.approx(3 * (2 * made + 3 * scored) / 4e9)
    with loop.config.unlocked():
        loop.config.model.dtype = "bfloat16"
    assert loop.ideal_seconds(chunk) is None


def test_the_first_line_says_what_a_training_runs_on(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(logging, "info", lambda text, *args: lines.append(str(text) % args if args else str(text)))
    assert trained(tmp_path, steps=2)
    assert lines[0] == devices.describe("float32")


def test_a_file_that_is_not_an_image_among_the_samples_does_not_end_a_training(tmp_path: pathlib.Path) -> None:
    (copied(tmp_path, until=10) / "samples" / "00000001.png").write_text("not an image")
    (tmp_path / "progress.gif").unlink()
    assert trained(tmp_path)
    assert (tmp_path / "progress.gif").exists()
