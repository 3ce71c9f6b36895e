"""Checkpoints give back what went in, keep what they should, and know damage when they see it."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Network, TrainState
from archirf_jax.errors import UserError
from archirf_jax.files import check_run_directory
from archirf_jax.training import checkpoints as room
from archirf_jax.training import checksums
from archirf_jax.training.checkpoints import NO_METRICS, Checkpoints, MetricsState
from archirf_jax.training.update import Update
from tests.training.toys import config

ITEMS = ("net.params", "net.opt", "net.averages.ema")


def network(step: int, **fields: Any) -> Network:
    value = jnp.arange(6.0).reshape(2, 3) + step
    opt = (jnp.int32(step), {"m": value * 3})
    return dataclasses.replace(Network({"n": {"w": value}}, {"ema": {"n": {"w": value * 2}}}, opt), **fields)


def state(step: int, **fields: Any) -> TrainState:
    """Of an objective that keeps nothing."""
    return TrainState(jnp.int32(step), {"net": network(step, **fields)})


def remembering(step: int) -> TrainState:
    kept = {"losses": jnp.arange(8.0).reshape(4, 2) + step, "written": jnp.arange(4, dtype=jnp.int32) * step}
    return state(step, objective_state=kept)


def two(step: int) -> TrainState:
    return TrainState(jnp.int32(step), {"student": network(step), "fake": network(10 * step)})


def like_average() -> Any:
    return jax.eval_shape(lambda: network(0).averages["ema"])


def save(directory: pathlib.Path, make: Callable[[int], TrainState]) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(written(make), directory))


@functools.cache
def written(make: Callable[[int], TrainState]) -> pathlib.Path:
    """What is saved of three steps, for copies."""
    directory = pathlib.Path(tempfile.mkdtemp()) / "c"
    checkpoints = Checkpoints(directory, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(make(step), {"steps": 3})
    checkpoints.wait()
    assert checkpoints.steps() == [3, 2]
    checkpoints.close()
    return directory


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    return save(tmp_path / "c", state)


def assert_equal(first: Any, second: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), first, second)


@pytest.mark.parametrize("make", [state, remembering, two])
def test_a_round_trip_is_exact(make: Callable[[int], TrainState], tmp_path: pathlib.Path) -> None:
    directory = save(tmp_path / "c", make)
    restored = Checkpoints(directory, keep=2).restore(jax.eval_shape(lambda: make(0)))
    assert restored is not None
    assert_equal(restored, make(3))


def test_a_field_that_a_network_has_is_saved_and_comes_back_whatever_it_is(tmp_path: pathlib.Path) -> None:
    @flax.struct.dataclass
    class Longer(Network):
        """With what somebody adds one day."""

        momentum: Any = ()

    def make(step: int) -> TrainState:
        own = network(step)
        fields = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
        return TrainState(jnp.int32(step), {"net": Longer(**fields, momentum={"v": jnp.full(3, 1.0 * step)})})

    directory = save(tmp_path / "c", make)
    assert (directory / "3" / "net.momentum").is_dir()
    restored = Checkpoints(directory).restore(jax.eval_shape(lambda: make(0)))
    assert restored is not None
    assert_equal(restored, make(3))


def test_what_is_empty_is_not_saved(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    items = {*ITEMS, "config", "networks"}
    assert {path.name for path in (saved / "3").iterdir() if path.is_dir()} == items
    with_state = save(tmp_path / "m", remembering)
    assert {path.name for path in (with_state / "3").iterdir() if path.is_dir()} == items | {"net.objective_state"}


def test_the_main_network_is_the_first_whatever_it_is_called(tmp_path: pathlib.Path) -> None:
    reader = Checkpoints(save(tmp_path / "c", two))
    assert reader.networks(3) == ["student", "fake"] and reader.averages(3) == ["ema"]
    for name, value in ((None, network(3)), ("student", network(3)), ("fake", network(30))):
        assert_equal(reader.restore_average(like_average(), network=name)[1], value.averages["ema"])
    assert_equal(reader.read("ema", like_average(), 2), network(2).averages["ema"])
    assert_equal(reader.read("ema", like_average(), 2, "fake"), network(20).averages["ema"])


@pytest.mark.parametrize(("make", "ask"), [(two, state), (state, two)])
def test_a_checkpoint_of_other_networks_is_named_as_such(make: Any, ask: Any, tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(save(tmp_path / "c", make), keep=2)
    for function in (checkpoints.restore, checkpoints.check_fits):
        with pytest.raises(UserError) as caught:
            function(jax.eval_shape(lambda: ask(0)))
        assert all(name in str(caught.value) for name in ("student", "fake", "net"))
    assert checkpoints.steps() == [3, 2]
    checkpoints.close()


def test_an_empty_directory_restores_nothing(tmp_path: pathlib.Path) -> None:
    assert Checkpoints(tmp_path / "c", keep=1).restore(jax.eval_shape(lambda: state(0))) is None


def test_the_average_alone_comes_from_the_newest_or_the_asked_step(saved: pathlib.Path) -> None:
    assert Checkpoints(saved).restore_average(like_average())[0] == 3
    step, average = Checkpoints(saved).restore_average(like_average(), 2)
    assert step == 2
    assert_equal(average, network(2).averages["ema"])
    with pytest.raises(UserError) as caught:
        Checkpoints(saved).restore_average(like_average(), 1)
    assert "3, 2" in str(caught.value)


def test_the_average_of_step_0_is_not_that_of_a_newer_one(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (0, 4):
        checkpoints.save(state(step), {})
    checkpoints.wait()
    step, average = checkpoints.restore_average(like_average(), 0)
    assert step == 0
    assert_equal(average, state(0).networks["net"].averages["ema"])


@pytest.mark.parametrize("item", [*ITEMS, "net.objective_state"])
def test_damage_anywhere_falls_back_and_is_kept_aside(item: str, tmp_path: pathlib.Path) -> None:
    saved = save(tmp_path / "c", remembering)
    victim = max((saved / "3" / item).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else -1)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    checkpoints = Checkpoints(saved, keep=2)
    restored = checkpoints.restore(jax.eval_shape(lambda: remembering(0)))
    assert restored is not None and int(restored.step) == 2
    assert (saved.parent / "damaged" / "3").is_dir() and checkpoints.steps() == [2]
    checkpoints.save(remembering(3), {})
    checkpoints.wait()
    assert checkpoints.steps() == [3, 2]
    checkpoints.close()


def test_damage_in_an_item_that_is_not_read_does_not_matter(saved: pathlib.Path) -> None:
    for path in (saved / "3" / "net.opt").rglob("*"):
        if path.is_file():
            path.unlink()
    assert Checkpoints(saved).restore_average(like_average())[0] == 3


def test_a_reader_leaves_a_damaged_checkpoint_where_it_is(saved: pathlib.Path) -> None:
    for step in ("3", "2"):
        next(path for path in (saved / step / "net.averages.ema").rglob("*") if path.is_file()).unlink()
    with pytest.raises(UserError):
        Checkpoints(saved).restore_average(like_average())
    assert (saved / "3").is_dir() and (saved / "2").is_dir()


def test_emptied_and_junk_folders_count_as_damage_and_a_second_damage_of_a_step_finds_room(saved: pathlib.Path) -> None:
    (saved / "9").mkdir()
    (saved.parent / "damaged" / "3").mkdir(parents=True)
    shutil.rmtree(saved / "3" / "net.opt")
    restored = Checkpoints(saved, keep=2).restore(jax.eval_shape(lambda: state(0)))
    assert restored is not None and int(restored.step) == 2
    assert (saved.parent / "damaged" / "3.1").is_dir()


@pytest.mark.parametrize(
    "content", [None, "", "{}", "[]", "{", '{"": 1}', '["" , ""]', "[" * 200_000, "without an item"]
)
def test_without_its_checksums_a_checkpoint_is_damaged(content: str | None, saved: pathlib.Path) -> None:
    path = saved / "3" / checksums.FILE
    sums = json.loads(path.read_text())
    path.unlink()
    if content == "without an item":
        content = json.dumps({name: crc for name, crc in sums.items() if not name.startswith("net.opt")})
    if content is not None:
        path.write_text(content)
    restored = Checkpoints(saved, keep=2).restore(jax.eval_shape(lambda: state(0)))
    assert restored is not None and int(restored.step) == 2 and (saved.parent / "damaged" / "3").is_dir()


@pytest.mark.parametrize("name", ["lr[1e-4]", "a[1]", "[x]", "all*", "one?"])
def test_a_path_that_nothing_could_be_read_from_is_refused_before_anything_is_made(
    name: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path / name / "checkpoints", keep=1)
    assert caught.value.field == "workdir" and not list(tmp_path.iterdir())
    check_run_directory(tmp_path / "lr 1e-4 %41#:'ü{x}", "workdir")


def test_a_save_that_is_not_complete_fails(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "check_run_directory", lambda path, field: None)  # Orbax loses files there
    checkpoints = Checkpoints(tmp_path / "a[1]", keep=1)
    with pytest.raises(UserError):
        checkpoints.save(state(1), {})
        checkpoints.wait()
    checkpoints.close()


def test_a_checkpoint_of_another_kind_of_device_opens_on_this_one(saved: pathlib.Path) -> None:
    for item in ITEMS:
        path = saved / "3" / item / "_sharding"
        values = json.loads(path.read_text())
        elsewhere = {key: value.replace("TFRT_CPU_0", "cuda:0").replace("cpu", "gpu") for key, value in values.items()}
        path.write_text(json.dumps(elsewhere))
        assert elsewhere != values
    checksums.write(saved / "3")
    restored = Checkpoints(saved, keep=2).restore(jax.eval_shape(lambda: state(0)))
    assert restored is not None and int(restored.step) == 3


def test_checksums_see_every_change(tmp_path: pathlib.Path) -> None:
    for item, file in (("a", "x"), ("b", "y")):
        (tmp_path / item).mkdir()
        for name in (file, "_METADATA", "manifest.ocdbt"):
            (tmp_path / item / name).write_bytes(b"abc")
    checksums.write(tmp_path)
    assert checksums.find_damage(tmp_path, ["a", "b"]) is None
    (tmp_path / "b" / "y").write_bytes(b"abd")
    assert checksums.find_damage(tmp_path, ["a"]) is None
    assert "b/y" in str(checksums.find_damage(tmp_path, ["a", "b"]))
    (tmp_path / "a" / "x").unlink()
    assert "a/x" in str(checksums.find_damage(tmp_path, ["a"]))


def test_what_a_kill_or_a_full_disk_left_half_written_is_cleared_by_the_next_run_and_not_by_a_reader(
    saved: pathlib.Path,
) -> None:
    half = saved / "7.orbax-checkpoint-tmp"
    shutil.copytree(saved / "3", half)
    Checkpoints(saved).restore_average(like_average())
    assert half.exists()
    checkpoints = Checkpoints(saved, keep=2)
    checkpoints.save(state(4), {})
    checkpoints.wait()
    assert not half.exists() and checkpoints.steps() == [4, 3]
    checkpoints.close()


def test_what_is_of_later_steps_is_forgotten(saved: pathlib.Path) -> None:
    checkpoints = Checkpoints(saved, keep=0)
    checkpoints.forget_after(2)
    assert checkpoints.steps() == [2] and not (saved / "3").exists()
    checkpoints.save(state(3), {})
    checkpoints.wait()
    assert checkpoints.steps() == [3, 2]
    checkpoints.close()


def test_further_averages_come_back_with_the_state_and_alone(tmp_path: pathlib.Path) -> None:
    further = {"decay_0.9": {"n": {"w": jnp.ones((2, 3))}}, "ema_0.050": {"n": {"w": jnp.zeros((2, 3))}}}

    def make(step: int) -> TrainState:
        return state(step, averages=network(step).averages | further)

    directory = save(tmp_path / "c", make)
    restored = Checkpoints(directory, keep=2).restore(jax.eval_shape(lambda: make(0)))
    assert_equal(restored, make(3))
    reader = Checkpoints(directory)
    assert reader.averages(3) == ["ema", "decay_0.9", "ema_0.050"]
    assert_equal(reader.restore_average(like_average(), name="decay_0.9")[1], further["decay_0.9"])
    assert_equal(reader.read("ema_0.050", like_average(), 2), further["ema_0.050"])
    with pytest.raises(UserError) as caught:
        reader.restore_average(like_average(), name="decay_0.5")
    assert "ema, decay_0.9, ema_0.050" in str(caught.value)
    with pytest.raises(UserError):
        reader.read("ema_0.100", like_average(), 2)


def test_metrics_that_are_reported_and_that_are_not_yet_are_kept_to_the_bit(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    metrics = MetricsState({"loss": 0.1 + 0.7}, {"loss": [0.1 + 0.2, 3.0], "loss_t/0_0.25": [1e-300, 0.0]})
    checkpoints.save(state(1), {}, metrics)
    checkpoints.save(state(2), {})
    checkpoints.save(state(3), {}, metrics)
    checkpoints.wait()
    assert [checkpoints.metrics_state(step) for step in (1, 2, 9)] == [metrics, NO_METRICS, NO_METRICS]
    assert checkpoints.averages(1) == ["ema"]
    (tmp_path / "c" / "3" / "metrics_state" / "metadata").write_text("{")
    assert checkpoints.metrics_state(3) == NO_METRICS
    restored = checkpoints.restore(jax.eval_shape(lambda: state(0)))
    assert restored is not None and int(restored.step) == 3  # nothing that trains is lost
    checkpoints.close()


def test_a_checkpoint_that_never_had_what_is_asked_for_is_not_damaged(saved: pathlib.Path) -> None:
    checkpoints = Checkpoints(saved, keep=2)
    more = network(0).averages | {"decay_0.9": {"n": {"w": jnp.ones((2, 3))}}}
    for like, lacking in ((remembering(0), "objective_state"), (state(0, averages=more), "decay_0.9")):
        for ask in (checkpoints.restore, checkpoints.check_fits):
            with pytest.raises(UserError) as caught:
                ask(jax.eval_shape(lambda like=like: like))
            assert lacking in str(caught.value)
    assert checkpoints.steps() == [3, 2] and not (saved.parent / "damaged").exists()
    checkpoints.check_fits(jax.eval_shape(lambda: state(0)))
    with pytest.raises(UserError):
        checkpoints.check_fits(jax.eval_shape(lambda: state(0, params={"n": {"w": jnp.zeros(3)}})))
    checkpoints.close()


def test_a_checkpoint_of_another_network_or_optimizer_is_named_by_what_differs(saved: pathlib.Path) -> None:
    def refused(**fields: Any) -> str:
        with pytest.raises(UserError) as caught:
            Checkpoints(saved, keep=2).restore(jax.eval_shape(lambda: state(0, **fields)))
        assert (saved / "3").is_dir() and "\n" not in str(caught.value)
        return str(caught.value)

    value = jnp.zeros((2, 3))
    renamed = refused(params={"n": {"v": value, "b": {"kernel": jnp.ones(2)}}})
    assert "another network" in renamed and all(name in renamed for name in ("n.w", "n.b.kernel", "n.v"))
    wider = refused(params={"n": {"w": jnp.zeros((2, 5))}})
    assert "(2, 3), not (2, 5)" in wider
    assert "another optimizer" in refused(opt={"mu": {"w": value}})
    assert "and 6 more" in refused(params={"n": {str(i): jnp.ones(1) for i in range(9)}})
    with pytest.raises(UserError) as caught:
        Checkpoints(saved).restore_average(jax.eval_shape(lambda: {"n": {"w": jnp.zeros(3)}}))
    assert "n.w of shape" in str(caught.value)


def test_optimizers_are_distinguished(tmp_path: pathlib.Path) -> None:
    params = {"block_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "frozen_table": jnp.ones(3)}

    def make(name: str) -> TrainState:
        return TrainState(jnp.int32(0), {"net": Update(config(optimizer__name=name), "net").init({"net": params})})

    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(make("adamw"), {})
    checkpoints.wait()
    assert_equal(checkpoints.restore(jax.eval_shape(lambda: make("adamw"))), make("adamw"))
    for name in ("adam", "lion", "muon", "schedule_free_adamw"):
        with pytest.raises(UserError) as caught:
            checkpoints.restore(jax.eval_shape(lambda name=name: make(name)))
        assert "another optimizer" in str(caught.value)
    checkpoints.close()


@pytest.mark.parametrize("trouble", ["vanished", "a file"])
def test_a_directory_that_went_away_is_one_line_and_may_come_back(trouble: str, tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "c", keep=2)
    checkpoints.save(state(1), {})
    checkpoints.wait()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    if trouble == "a file":
        (tmp_path / "run").write_text("no directory")
    with pytest.raises(UserError) as caught:
        checkpoints.save(state(2), {})
        checkpoints.wait()
    assert "\n" not in str(caught.value)
    (tmp_path / "run").unlink(missing_ok=True)
    if (tmp_path / "run").exists():
        shutil.rmtree(tmp_path / "run")
    (tmp_path / "elsewhere").rename(tmp_path / "run")
    checkpoints.reopen()
    checkpoints.save(state(3), {})
    checkpoints.wait()
    assert checkpoints.steps() == [3, 1]
    assert_equal(checkpoints.restore(jax.eval_shape(lambda: state(0))), state(3))
    checkpoints.close()


def test_a_link_to_a_disk_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path / "checkpoints", keep=1)
    assert caught.value.field == "workdir" and not (tmp_path / "disk").exists()
