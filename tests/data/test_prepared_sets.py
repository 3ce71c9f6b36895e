"""A prepared set that is damaged, changed or a trap is refused in one line, and nothing that it names is run."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from archirf_jax.data.preparation import prepare
from archirf_jax.data.tfds_source import load_builder
from archirf_jax.errors import UserError
from tests.data.test_sources import refused, tfds_source
from tests.mutations import MUTATIONS, mutated


@pytest.fixture
def prepared(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the digits' own folder, to be damaged."""
    shutil.copytree(data_dir / "digits", tmp_path / "digits")
    return tmp_path / "digits/1.0.0"


def test_a_set_prepared_in_another_format_is_refused_with_a_way_out(prepared: pathlib.Path) -> None:
    info = prepared / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    directory = prepared.parents[1]
    for call in (lambda: tfds_source(directory), lambda: prepare("digits", str(directory))):
        assert "--name=digits" in refused("data.name", call)


DAMAGES: dict[str, Callable[[pathlib.Path], Any]] = {
    "records gone": lambda path: next(path.glob("*array_record*")).unlink(),
    "records cut": lambda path: cut(next(path.glob("*array_record*")), 999),
    "info cut": lambda path: cut(path / "dataset_info.json", 40),
    "info gone": lambda path: (path / "dataset_info.json").unlink(),
    "features cut": lambda path: cut(path / "features.json", 40),
    "features too deep": lambda path: (path / "features.json").write_text("[" * 200_000),
}


def cut(file: pathlib.Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_set_is_refused_and_preparing_it_says_what_to_delete(prepared: pathlib.Path, damage: str) -> None:
    DAMAGES[damage](prepared)
    refused("data.name", lambda: tfds_source(prepared.parents[1]))
    message = refused("data.name", lambda: prepare("digits", str(prepared.parents[1])))
    assert "delete" in message and str(prepared.parent) in message


@pytest.mark.slow
@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_a_changed_description_of_a_set_is_read_or_refused_in_one_line(prepared: pathlib.Path, file: str) -> None:
    found, complaints = 0, 0
    for content in mutated((prepared / file).read_bytes(), seed=4):
        (prepared / file).write_bytes(content)
        try:
            found += len(tfds_source(prepared.parents[1])) > 0
        except UserError as e:
            complaints += 1
            assert "\n" not in str(e)
    assert found + complaints == MUTATIONS


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "digits-train.array_record-00000-of-00001"])
def test_pipes_in_a_prepared_set_are_not_waited_for(prepared: pathlib.Path, file: str) -> None:
    (prepared / file).unlink()
    os.mkfifo(prepared / file)
    refused("data.name", lambda: tfds_source(prepared.parents[1]))


@pytest.mark.parametrize("name", ["x/..", "x/.", "x/..:1.0.0", "x/../digits", "../digits", "huggingface:x", "digits/"])
def test_a_name_leads_to_no_other_folder_and_no_site(prepared: pathlib.Path, name: str) -> None:
    shutil.copytree(prepared, prepared.parents[1] / "1.0.0")
    (prepared.parents[1] / "x").mkdir()
    refused("data.name", lambda: tfds_source(prepared.parents[1], name))


@pytest.mark.parametrize("name", ["digits", "digits:1.0.0", "evilset", "EvilSet", "evilset/x"])
@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_code_that_a_prepared_set_names_is_not_run(
    prepared: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    directory = prepared.parents[1]
    (directory / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()")
    monkeypatch.syspath_prepend(directory)
    features = json.loads((prepared / "features.json").read_text())
    label = features["featuresDict"]["features"]["label"]
    del label["pythonClassName"]
    label |= {key: "evil.Label", "content": {}} if key == "type" else {key: "evil.Label"}
    (prepared / "features.json").write_text(json.dumps(features))
    if "digits" not in name:
        prepared.parent.rename(directory / ("evil_set" if name == "EvilSet" else "evilset"))
    assert "evil.Label" in refused("data.name", lambda: tfds_source(directory, name))
    assert "evil.Label" in refused("data.name", lambda: prepare(name, str(directory)))
    assert not (directory / "evil.ran").exists()


def test_the_builder_of_an_own_set_is_found_by_its_name(tmp_path: pathlib.Path) -> None:
    assert load_builder("digits", str(tmp_path)).info.features["label"].num_classes == 10
