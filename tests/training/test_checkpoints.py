"""Checkpoints give back what went in, keep what they should, and know damage when they see it."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest

from archirf_jax.errors import UserError
from archirf_jax.processes.importance import LossHistory
from archirf_jax.training import checksums
from archirf_jax.training.checkpoints import NOTHING, Checkpoints, Told
from archirf_jax.training.state import TrainState
from archirf_jax.training.update import Update
from configs import default


def state(step: int) -> TrainState:
    """Of a process that remembers nothing."""
    value = jnp.arange(6.0).reshape(2, 3) + step
    return TrainState(jnp.int32(step), {"w": value}, {"w": value * 2}, (jnp.int32(step), {"m": value * 3}))


def remembering(step: int) -> TrainState:
    memory = LossHistory(jnp.arange(8.0).reshape(4, 2) + step, jnp.arange(4, dtype=jnp.int32) * step)
    return state(step).replace(memory=memory)


def save(directory: pathlib.Path, make: Callable[[int], TrainState]) -> pathlib.Path:
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


@pytest.mark.parametrize("make", [state, remembering])
def test_a_round_trip_is_exact(make: Callable[[int], TrainState], tmp_path: pathlib.Path) -> None:
    directory = save(tmp_path / "c", make)
    restored = Checkpoints(directory, keep=2).restore(jax.eval_shape(lambda: make(0)))
    assert restored is not None and isinstance(restored.memory, type(make(0).memory))
    assert_equal(restored, make(3))


def test_what_is_not_remembered_is_not_saved(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    items = {"params", "ema", "opt", "config"}
    assert {path.name for path in (saved / "3").iterdir() if path.is_dir()} == items
    with_memory = save(tmp_path / "m", remembering)
    assert {path.name for path in (with_memory / "3").iterdir() if path.is_dir()} == items | {"memory"}


def test_a_run_saved_before_anything_was_remembered_opens(tmp_path: pathlib.Path) -> None:
    names = ("params", "ema", "opt")
    with ocp.CheckpointManager(tmp_path / "c", item_names=(*names, "config")) as manager:
        items = {name: ocp.args.StandardSave(getattr(state(5), name)) for name in names}
        manager.save(5, args=ocp.args.Composite(config=ocp.args.JsonSave({"steps": 5}), **items))
    restored = Checkpoints(tmp_path / "c", keep=2).restore(jax.eval_shape(lambda: state(0)))
    assert restored is not None and restored.memory == ()
    assert_equal(restored, state(5))
    assert Checkpoints(tmp_path / "c").restore_ema(jax.eval_shape(lambda: state(0).ema))[0] == 5


def test_an_empty_directory_restores_nothing(tmp_path: pathlib.Path) -> None:
    assert Checkpoints(tmp_path / "c", keep=1).restore(jax.eval_shape(lambda: state(0))) is None


def test_the_average_alone_comes_from_the_newest_or_the_asked_step(saved: pathlib.Path) -> None:
    like = jax.eval_shape(lambda: state(0).ema)
    assert Checkpoints(saved).restore_ema(like)[0] == 3
    step, average = Checkpoints(saved).restore_ema(like, 2)
    assert step == 2
    np.testing.assert_array_equal(average["w"], state(2).ema["w"])
    with pytest.raises(UserError, match="no checkpoint of step 1; there are 3, 2"):
        Checkpoints(saved).restore_ema(like, 1)


@pytest.mark.parametrize("item", ["params", "ema", "opt", "memory"])
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
    for path in (saved / "3" / "opt").rglob("*"):
        if path.is_file():
            path.unlink()
    assert Checkpoints(saved).restore_ema(jax.eval_shape(lambda: state(0).ema))[0] == 3


def test_a_reader_leaves_a_damaged_checkpoint_where_it_is(saved: pathlib.Path) -> None:
    for step in ("3", "2"):
        next(path for path in (saved / step / "ema").rglob("*") if path.is_file()).unlink()
    with pytest.raises(UserError, match="no usable checkpoint"):
        Checkpoints(saved).restore_ema(jax.eval_shape(lambda: state(0).ema))
    assert (saved / "3").is_dir() and (saved / "2").is_dir()


def test_emptied_and_junk_folders_count_as_damage_and_a_second_damage_of_a_step_finds_room(saved: pathlib.Path) -> None:
    (saved / "9").mkdir()
    (saved.parent / "damaged" / "3").mkdir(parents=True)
    shutil.rmtree(saved / "3" / "opt")
    (saved / "3" / checksums.FILE).unlink()
    restored = Checkpoints(saved, keep=2).restore(jax.eval_shape(lambda: state(0)))
    assert restored is not None and int(restored.step) == 2
    assert (saved.parent / "damaged" / "3.1").is_dir()


def test_a_checkpoint_of_another_kind_of_device_opens_on_this_one(saved: pathlib.Path) -> None:
    (saved / "3" / checksums.FILE).unlink()
    for item in ("params", "ema", "opt"):
        path = saved / "3" / item / "_sharding"
        values = json.loads(path.read_text())
        elsewhere = {key: value.replace("TFRT_CPU_0", "cuda:0").replace("cpu", "gpu") for key, value in values.items()}
        path.write_text(json.dumps(elsewhere))
        assert elsewhere != values
    restored = Checkpoints(saved, keep=2).restore(jax.eval_shape(lambda: state(0)))
    assert restored is not None and int(restored.step) == 3


def test_checksums_see_every_change(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"abc")
    (tmp_path / "a" / "_METADATA").write_bytes(b"{}")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "y").write_bytes(b"abc")
    (tmp_path / "b" / "_METADATA").write_bytes(b"{}")
    assert checksums.find_damage(tmp_path, ["a"]) is None
    checksums.write(tmp_path)
    assert checksums.find_damage(tmp_path, ["a", "b"]) is None
    (tmp_path / "b" / "y").write_bytes(b"abd")
    assert checksums.find_damage(tmp_path, ["a"]) is None
    assert "b/y has changed" in str(checksums.find_damage(tmp_path, ["a", "b"]))
    (tmp_path / "a" / "x").unlink()
    assert "a/x is missing" in str(checksums.find_damage(tmp_path, ["a"]))
    (tmp_path / checksums.FILE).write_text("{")
    assert "not readable" in str(checksums.find_damage(tmp_path, ["a"]))


def kept(**changes: Any) -> Any:
    fields = dict(keep=1, keep_best=0, best_metric="loss", keep_every=0) | changes
    return ml_collections.ConfigDict(fields)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (kept(), [8]),
        (kept(keep=3), [8, 7, 6]),
        (kept(keep_best=2), [8, 4, 2]),
        (kept(keep_every=3), [8, 6, 3]),
        (kept(keep=2, keep_best=1, keep_every=5), [8, 7, 5, 2]),
        (kept(keep_best=2, best_metric="accuracy"), [8, 7, 1]),
        (0, [8, 7, 6, 5, 4, 3, 2, 1]),
    ],
)
def test_what_stays_is_the_newest_the_best_and_every_so_many(
    policy: Any, expected: list[int], tmp_path: pathlib.Path
) -> None:
    losses = {1: 0.9, 2: 0.1, 3: 0.8, 4: 0.2, 5: 0.7, 6: 0.6, 7: 0.5, 8: 0.4}
    accuracies = {1: 0.1, 7: 0.2} | {step: 0.5 + step for step in range(2, 7)} | {8: 9.0}
    for restarts in ([], [2, 3, 7], list(losses)):
        directory = tmp_path / str(len(restarts))
        checkpoints = Checkpoints(directory, policy)
        for step in losses:
            checkpoints.save(state(step), {}, row({"loss": losses[step], "accuracy": accuracies[step]}))
            if step in restarts:
                checkpoints.wait()
                checkpoints.close()
                checkpoints = Checkpoints(directory, policy)
        checkpoints.wait()
        assert checkpoints.steps() == expected
        checkpoints.close()


def row(metrics: dict[str, float]) -> Told:
    return Told(metrics, {})


def test_a_save_without_the_metric_is_not_one_of_the_best(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", kept(keep_best=1))
    for step, told in ((1, {"loss": 0.5}), (2, {}), (3, {"loss": 0.6}), (4, {"accuracy": 1.0})):
        checkpoints.save(state(step), {}, row(told))
    checkpoints.wait()
    assert checkpoints.steps() == [4, 1]
    checkpoints.close()


def test_another_metric_may_tell_the_best_of_checkpoints_that_are_there(tmp_path: pathlib.Path) -> None:
    for policy, steps in ((kept(keep_best=2), (1, 2, 3)), (kept(keep_best=2, best_metric="accuracy"), (4, 5))):
        checkpoints = Checkpoints(tmp_path / "c", policy)
        for step in steps:
            checkpoints.save(state(step), {}, row({"loss": 1.0 / step, "accuracy": [9, 9, 0, 9, 5, 7][step]}))
        checkpoints.wait()
        checkpoints.close()
    assert checkpoints.steps() == [5, 4, 2]


def test_what_a_kill_or_a_full_disk_left_half_written_is_cleared_by_the_next_run_and_not_by_a_reader(
    saved: pathlib.Path,
) -> None:
    half = saved / "7.orbax-checkpoint-tmp"
    shutil.copytree(saved / "3", half)
    Checkpoints(saved).restore_ema(jax.eval_shape(lambda: state(0).ema))
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
    averages = {"decay_0.9": {"w": jnp.ones((2, 3))}, "ema_0.050": {"w": jnp.zeros((2, 3))}}

    def make(step: int) -> TrainState:
        return state(step).replace(averages=averages)

    directory = save(tmp_path / "c", make)
    restored = Checkpoints(directory, keep=2).restore(jax.eval_shape(lambda: make(0)))
    assert_equal(restored, make(3))
    like = jax.eval_shape(lambda: averages["decay_0.9"])
    reader = Checkpoints(directory)
    assert reader.averages(3) == ["ema", "decay_0.9", "ema_0.050"]
    np.testing.assert_array_equal(reader.restore_ema(like, item="decay_0.9")[1]["w"], 1)
    np.testing.assert_array_equal(reader.read("ema_0.050", like, 2)["w"], 0)
    with pytest.raises(UserError, match="no average 'decay_0.5' in it; there are ema, decay_0.9, ema_0.050"):
        reader.restore_ema(like, item="decay_0.5")
    with pytest.raises(UserError, match="damaged or has no 'ema_0.100'"):
        reader.read("ema_0.100", like, 2)


def test_what_was_told_and_what_was_not_yet_is_kept_to_the_bit(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    told = Told({"loss": 0.1 + 0.7}, {"loss": [0.1 + 0.2, 3.0], "loss_t/0_0.25": [1e-300, 0.0]})
    checkpoints.save(state(1), {}, told)
    checkpoints.save(state(2), {})
    checkpoints.save(state(3), {}, told)
    checkpoints.wait()
    assert [checkpoints.told(step) for step in (1, 2, 9)] == [told, NOTHING, NOTHING]
    assert checkpoints.averages(1) == ["ema"]
    (tmp_path / "c" / "3" / "told" / "metadata").write_text("{")
    assert checkpoints.told(3) == NOTHING
    restored = checkpoints.restore(jax.eval_shape(lambda: state(0)))
    assert restored is not None and int(restored.step) == 3  # nothing that trains is lost
    checkpoints.close()


def test_a_checkpoint_that_never_had_what_is_asked_for_is_not_damaged(saved: pathlib.Path) -> None:
    checkpoints = Checkpoints(saved, keep=2)
    for like in (remembering(0), state(0).replace(averages={"decay_0.9": {"w": jnp.ones((2, 3))}})):
        for ask in (checkpoints.restore, checkpoints.check_fits):
            with pytest.raises(
                UserError, match="step 3 .* of another training than this one: it has no (memory|decay_0.9)"
            ):
                ask(jax.eval_shape(lambda like=like: like))
    assert checkpoints.steps() == [3, 2] and not (saved.parent / "damaged").exists()
    checkpoints.check_fits(jax.eval_shape(lambda: state(0)))
    with pytest.raises(UserError, match="another network than this one: params has w of shape"):
        checkpoints.check_fits(jax.eval_shape(lambda: state(0).replace(params={"w": jnp.zeros(3)})))
    checkpoints.close()


def test_a_checkpoint_of_another_network_or_optimizer_is_named_by_what_differs(saved: pathlib.Path) -> None:
    def refused(like: Any) -> str:
        with pytest.raises(UserError) as told:
            Checkpoints(saved, keep=2).restore(jax.eval_shape(lambda: like))
        assert (saved / "3").is_dir() and "\n" not in str(told.value)
        return str(told.value)

    mine = state(0)
    other = {"v": mine.params["w"], "b": {"kernel": jnp.ones(2)}}
    assert "another network than this one: params has w that is none here, no b.kernel, no v" in refused(
        mine.replace(params=other)
    )
    wider = refused(mine.replace(params={"w": jnp.zeros((2, 5))}))
    assert "params has w of shape (2, 3), not (2, 5)" in wider and "another directory" in wider
    assert "another optimizer than this one: opt has" in refused(mine.replace(opt={"mu": {"w": mine.params["w"]}}))
    many = refused(mine.replace(params={str(i): jnp.ones(1) for i in range(9)}))
    assert "and 6 more" in many
    with pytest.raises(UserError, match="ema has w of shape"):
        Checkpoints(saved).restore_ema(jax.eval_shape(lambda: {"w": jnp.zeros(3)}))


def test_real_optimizers_are_told_apart(tmp_path: pathlib.Path) -> None:
    params = {"block_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "frozen_table": jnp.ones(3)}

    def make(name: str, **changes: Any) -> TrainState:
        config = default.get_config()
        config.update_from_flattened_dict({"optimizer.name": name, **changes})
        return Update(config).init(params)

    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(make("adamw"), {})
    checkpoints.wait()
    assert_equal(checkpoints.restore(jax.eval_shape(lambda: make("adamw"))), make("adamw"))
    for name in ("adam", "lion", "muon", "schedule_free_adamw"):
        with pytest.raises(UserError, match="of another optimizer"):
            checkpoints.restore(jax.eval_shape(lambda name=name: make(name)))
    checkpoints.close()


@pytest.mark.parametrize("trouble", ["vanished", "a file"])
def test_a_directory_that_went_away_is_one_line_and_may_come_back(trouble: str, tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "c", keep=2)
    checkpoints.save(state(1), {})
    checkpoints.wait()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    if trouble == "a file":
        (tmp_path / "run").write_text("no directory")
    with pytest.raises(UserError) as told:
        checkpoints.save(state(2), {})
        checkpoints.wait()
    assert "a checkpoint could not be written" in str(told.value) and "\n" not in str(told.value)
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
