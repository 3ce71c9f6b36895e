"""The configuration of a run directory: what is saved comes back, another run is refused."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from typing import Any

import pytest

from archirf_jax.errors import UserError
from archirf_jax.launch import config as configuration
from archirf_jax.launch.fields import leaves
from archirf_jax.training import optimizers
from archirf_jax.training.start import MARK
from configs import dit_rf

IDENTITY = {"class_names": ["a", "b"], "images": 120, "frozen": {"teacher": "1f"}}


def claim(config: Any, workdir: pathlib.Path, changing: bool = False, identity: Any = None) -> None:
    """What a start does with its run directory, and an end."""
    with configuration.claimed(config, workdir, changing, identity):
        pass


def refused(config: Any, workdir: pathlib.Path, identity: Any = None) -> str:
    with pytest.raises(UserError) as caught:
        claim(config, workdir, identity=identity)
    assert caught.value.field == "workdir" and "\n" not in str(caught.value)
    return str(caught.value)


def saved(workdir: pathlib.Path) -> None:
    """A checkpoint there."""
    (workdir / "checkpoints" / "10").mkdir(parents=True)


def test_what_is_saved_comes_back_and_the_same_run_may_go_on(tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    claim(made, tmp_path / "run", identity=IDENTITY)
    saved(tmp_path / "run")
    claim(made, tmp_path / "run", identity=IDENTITY)
    expected = json.loads(json.dumps(made.to_dict())) | {"identity": IDENTITY}
    assert configuration.load(tmp_path / "run").to_dict() == expected


def test_another_configuration_is_refused_with_both_values_and_changes_nothing(tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    claim(made, tmp_path)
    saved(tmp_path)
    before = (tmp_path / configuration.FILE).read_bytes()
    made.seed, made.model.depth = 5, 9
    said = refused(made, tmp_path)
    assert "model.depth: 4 there, 9 now" in said and "seed: 0 there, 5 now" in said
    assert (tmp_path / configuration.FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"class_names": ["a", "z"]}, "identity.class_names[1]: 'b' there, 'z' now"),
        ({"class_names": ["a", "b", "c"]}, "identity.class_names[2]: '(absent)' there, 'c' now"),
        ({"images": 110}, "identity.images: 120 there, 110 now"),
        ({"frozen": {"teacher": "2e"}}, "identity.frozen.teacher: '1f' there, '2e' now"),
    ],
)
def test_other_data_and_other_frozen_runs_are_another_run(
    change: dict[str, Any], difference: str, tmp_path: pathlib.Path
) -> None:
    made = dit_rf.get_config()
    claim(made, tmp_path, identity=IDENTITY)
    saved(tmp_path)
    assert difference in refused(made, tmp_path, IDENTITY | change)
    claim(made, tmp_path, True, IDENTITY | change)
    claim(made, tmp_path, identity=IDENTITY | change)


def test_many_differences_are_a_short_line_and_how_many(tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    claim(made, tmp_path, identity={"class_names": [f"class {i}" for i in range(1000)]})
    saved(tmp_path)
    said = refused(made, tmp_path, {"class_names": [f"class {i + 1}" + 99 * "x" for i in range(1000)]})
    assert "class_names[0]: 'class 0' there" in said and "992 more" in said and len(said) < 2000


def test_a_run_whose_checkpoints_are_gone_keeps_its_configuration(tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    claim(made, tmp_path)
    (tmp_path / MARK).touch()
    before = (tmp_path / configuration.FILE).read_bytes()
    made.seed = 5
    assert "seed: 0 there, 5 now" in refused(made, tmp_path)
    assert (tmp_path / configuration.FILE).read_bytes() == before


def test_a_pipe_in_place_of_a_configuration_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / configuration.FILE)
    claim(dit_rf.get_config(), tmp_path)
    assert configuration.load(tmp_path).seed == 0


def test_a_run_goes_on_with_another_configuration_where_that_is_asked_for(tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    claim(made, tmp_path)
    saved(tmp_path)
    made.optimizer.learning_rate = 0.25
    claim(made, tmp_path, changing=True)
    assert configuration.load(tmp_path).optimizer.learning_rate == 0.25


def test_a_start_that_saved_nothing_may_be_corrected(tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    claim(made, tmp_path)
    made.seed = 5
    claim(made, tmp_path)
    assert configuration.load(tmp_path).seed == 5


def test_checkpoints_without_a_configuration_are_not_taken_over(tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    saved(tmp_path)
    refused(made, tmp_path)
    assert not (tmp_path / configuration.FILE).exists()


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
        "data.device_cache_mib": 0,
    }
    made.update_from_flattened_dict(changes)
    with made.unlocked():
        made.frozen.teacher = "runs/moved"
    claim(made, tmp_path)
    now = dict(leaves(configuration.load(tmp_path)))
    assert {field: now[field] for field in changes} == changes


@pytest.mark.parametrize(
    "field", ["steps", "batch_size", "data.name", "ema.decay", "optimizer.name", "schedule.warmup_steps"]
)
def test_what_decides_a_run_may_not_change(field: str, tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    made.schedule.name = "cosine"
    claim(made, tmp_path)
    saved(tmp_path)
    old = dict(leaves(made))[field]
    made.update_from_flattened_dict(
        {field: f"{old}s" if isinstance(old, str) else old / 2 if field[0] == "e" else old + 1}
    )
    assert f"{field}: " in refused(made, tmp_path)


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
def test_a_run_may_become_longer_where_its_schedule_does_not_know_the_end(name: str, tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    with made.unlocked():
        made.schedule.update(name=name, start=1e-5)  # geometric begins there
    claim(made, tmp_path)
    saved(tmp_path)
    made.steps += 1000
    schedules = [optimizers.make_schedule(each) for each in (made, configuration.load(tmp_path))]
    depends = any(float(schedules[0](step)) != float(schedules[1](step)) for step in (0, 2000, 9000))
    with pytest.raises(UserError) if depends else contextlib.nullcontext():
        claim(made, tmp_path)
    assert depends == (name not in configuration.ENDLESS)


@pytest.mark.parametrize("content", ["[1]", "{}", "3", "{", '{"a.b": 1}', "[" * 100_000, "\udcff"])
def test_a_damaged_configuration_is_named(content: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / configuration.FILE).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError) as caught:
        configuration.load(tmp_path, "weak_workdir")
    assert caught.value.field == "weak_workdir" and configuration.FILE in str(caught.value)


@pytest.mark.parametrize("place", ["nothing", "file/run"])
def test_a_directory_without_a_run_is_named(place: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        configuration.load(tmp_path / place)
    assert caught.value.field == "workdir"


@pytest.mark.parametrize("name", ["lr[1e-4]", "a*", "what?", "l\udce4uf", "file/run"])
def test_a_directory_that_cannot_hold_a_run_is_refused_before_anything_is_made(
    name: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("")
    refused(dit_rf.get_config(), tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / name)
    refused(dit_rf.get_config(), tmp_path / "link" / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


@pytest.mark.parametrize(
    ("there", "now", "field"),
    [
        ({"name": "latents:old"}, {"name": "latents:new"}, "data.name"),
        (
            {"fields": {"text": {"name": "text_states", "cache": "old"}}},
            {"fields": {"text": {"cache": "new"}}},
            "data.fields.text.cache",
        ),
    ],
)
def test_a_cache_may_lie_elsewhere_where_the_data_have_the_same_digest(
    there: dict[str, Any], now: dict[str, Any], field: str, tmp_path: pathlib.Path
) -> None:
    made = dit_rf.get_config()
    with made.unlocked():
        made.data.update(there)
        claim(made, tmp_path, identity={"data_digest": "1f"})
        saved(tmp_path)
        made.data.update(now)
    for other in ({"data_digest": "2e"}, None):
        assert f"{field}: " in refused(made, tmp_path, other)
    claim(made, tmp_path, identity={"data_digest": "1f"})
    found = dict(leaves(configuration.load(tmp_path)))
    assert found[field].removeprefix("latents:") == "new"


def test_images_and_other_fields_do_not_move_like_a_cache(tmp_path: pathlib.Path) -> None:
    made = dit_rf.get_config()
    with made.unlocked():
        made.data.update(name="folder:old", fields={"own": {"name": "my_lab.own", "cache": "old"}})
        claim(made, tmp_path, identity={"data_digest": "1f"})
        saved(tmp_path)
        made.data.update(name="latents:new", fields={"own": {"cache": "new"}})
    said = refused(made, tmp_path, {"data_digest": "1f"})
    assert "data.name" in said and "data.fields.own.cache" in said
