"""Configurations: what is wrong is named, what is saved comes back, another one is refused."""

from __future__ import annotations

import contextlib
import json
import pathlib
from typing import Any

import pytest

from archirf_jax.errors import UserError
from archirf_jax.launch import config as configuration
from archirf_jax.training import optimizers
from configs import default, dit_rf

FILE = str(pathlib.Path(dit_rf.__file__))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stepz=3", ["config.stepz", "'3'", "'steps'"]),
        ("optimizer.learningrate=3", ["config.optimizer.learningrate", "'optimizer.learning_rate'"]),
        ("steps=3.5", ["config.steps", "'3.5'", "integer", "default"]),
        ("data.flip=7", ["config.data.flip", "true or false"]),
        ("data=7", ["config.data", "group", "config.data."]),
        ("steps", ["config.steps", "integer"]),
    ],
)
def test_a_wrong_override_is_named_with_what_it_got_and_what_is_near(override: str, expected: list[str]) -> None:
    said = configuration.explain([f"--config={FILE}", f"--config.{override}"])
    assert said is not None and all(word in said for word in expected), said


@pytest.mark.parametrize("override", ["steps=3", "optimizer.learning_rate=1", "data.flip=True", "data.name=cifar10"])
def test_a_right_override_has_nothing_to_explain(override: str) -> None:
    assert configuration.explain([f"--config={FILE}", f"--config.{override}"]) is None


def test_a_config_file_that_fails_is_named_with_its_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "c.py").write_text("def get_config():\n    return nothing\n")
    said = configuration.explain([f"--config={tmp_path / 'c.py'}"])
    assert said is not None and "c.py" in said and "nothing" in said


@pytest.mark.parametrize("name", [*configuration.POSITIVE, *configuration.NOT_NEGATIVE, *configuration.BELOW_ONE])
def test_every_checked_field_exists_and_refuses_a_value_below_its_range(name: str) -> None:
    made = default.get_config()
    assert name in dict(configuration.leaves(made))
    configuration.check(made)
    made.update_from_flattened_dict({name: -1})
    with pytest.raises(UserError, match=f"config.{name}: -1"):
        configuration.check(made)


def claim(config: Any, workdir: pathlib.Path) -> None:
    """What a start does with its run directory, and an end."""
    with configuration.claimed(config, workdir):
        pass


def saved(workdir: pathlib.Path) -> None:
    """A checkpoint there."""
    (workdir / "checkpoints" / "10").mkdir(parents=True)


def test_what_is_saved_comes_back_and_the_same_run_may_go_on(tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    claim(made, tmp_path / "run")
    saved(tmp_path / "run")
    claim(made, tmp_path / "run")
    assert configuration.load(tmp_path / "run").to_dict() == json.loads(json.dumps(made.to_dict()))


def test_another_configuration_is_refused_with_every_difference_and_changes_nothing(tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    claim(made, tmp_path)
    saved(tmp_path)
    before = (tmp_path / configuration.FILE).read_text()
    made.seed, made.model.depth = 5, 9
    with pytest.raises(UserError, match="model.depth: 4 there, 9 now; seed: 0 there, 5 now"):
        claim(made, tmp_path)
    assert (tmp_path / configuration.FILE).read_text() == before


def test_a_run_goes_on_with_another_configuration_if_told_to_which_it_says(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, said = dit_rf.get_config(), list[str]()
    monkeypatch.setattr("archirf_jax.launch.config.logging.warning", lambda text, *args: said.append(text % args))
    with configuration.claimed(made, tmp_path):
        saved(tmp_path)
    with configuration.claimed(made, tmp_path, changing=True):
        assert said == []
    made.optimizer.learning_rate = 0.25
    with configuration.claimed(made, tmp_path, changing=True):
        assert "optimizer.learning_rate: 0.002 there, 0.25 now" in said[0] and len(said) == 1
    assert configuration.load(tmp_path).optimizer.learning_rate == 0.25


def test_a_start_that_saved_nothing_may_be_corrected(tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    claim(made, tmp_path)
    made.seed = 5
    claim(made, tmp_path)
    assert configuration.load(tmp_path).seed == 5


def test_where_a_run_is_computed_and_what_is_kept_of_it_may_change_and_is_saved(tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    claim(made, tmp_path)
    saved(tmp_path)
    changes = {
        "mesh.data": 2,
        "mesh.fsdp": 4,
        "accumulation": 2,
        "steps_per_dispatch": 3,
        "log.every_steps": 7,
        "checkpoint.keep": 9,
        "guard.patience": 1,
        "data.dir": "elsewhere",
        "data.resident_mib": 0,
    }
    assert {field.partition(".")[0] for field in changes} == {free.partition(".")[0] for free in configuration.FREE}
    made.update_from_flattened_dict(changes)
    claim(made, tmp_path)
    now = dict(configuration.leaves(configuration.load(tmp_path)))
    assert {field: now[field] for field in changes} == changes


@pytest.mark.parametrize(
    "field", ["steps", "batch_size", "data.name", "ema.decay", "optimizer.name", "schedule.warmup_steps", "sample.eta"]
)
def test_what_decides_a_run_may_not_change(field: str, tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    made.schedule.name = "cosine"
    claim(made, tmp_path)
    saved(tmp_path)
    old = dict(configuration.leaves(made))[field]
    made.update_from_flattened_dict({field: f"{old}s" if isinstance(old, str) else old + 1})
    with pytest.raises(UserError, match=f"another configuration \\({field}: "):
        claim(made, tmp_path)


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
def test_a_run_may_become_longer_where_its_schedule_does_not_know_the_end(name: str, tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    made.schedule.name = name
    claim(made, tmp_path)
    saved(tmp_path)
    made.steps += 1000
    schedules = [optimizers.make_schedule(each) for each in (made, configuration.load(tmp_path))]
    depends = any(float(schedules[0](step)) != float(schedules[1](step)) for step in (0, 2000, 9000))
    with pytest.raises(UserError, match="steps: ") if depends else contextlib.nullcontext():
        claim(made, tmp_path)
    assert depends == (name not in configuration.ENDLESS)


@pytest.mark.parametrize(
    "flags",
    [
        ["--config.steps", "12"],
        ["-config.steps=12"],
        ["--config.steps=0x10"],
        ["--config.steps=007"],
        ["--config.data.flip=true"],
    ],
)
def test_every_way_to_write_a_flag_is_understood(flags: list[str]) -> None:
    assert configuration.explain([f"--config={FILE}", *flags]) is None
    assert "stepz" in str(configuration.explain(["--config", FILE, "-config.stepz", "3"]))


@pytest.mark.parametrize("content", ["[1]", "{}", "3"])
def test_a_saved_configuration_that_is_none_is_named(content: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="no configuration"):
        configuration.load(tmp_path)


def test_a_damaged_saved_configuration_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json"):
        configuration.load(tmp_path)
