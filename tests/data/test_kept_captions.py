"""Captions of a prepared set are read from its records once, and anew when these, or what is kept, are not the same."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import pytest

from archirf_jax.data import kept_captions
from archirf_jax.data.kept_captions import written
from archirf_jax.data.preparation import prepare
from archirf_jax.data.sources import open_source
from archirf_jax.data.tfds_source import TfdsSource
from archirf_jax.errors import UserError
from tests.data.test_captions import SEVERAL, SIZE, Titled  # noqa: F401 - a set that TFDS finds by its class


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    place = tmp_path_factory.mktemp("sets")
    prepare("titled", str(place))
    return place


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> list[int]:
    """The examples whose captions were read from their records."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found: list[int] = []
    read = TfdsSource.captions

    def counted(self: TfdsSource, index: int, feature: str = "caption") -> list[str]:
        found.append(index)
        return read(self, index, feature)

    monkeypatch.setattr(TfdsSource, "captions", counted)
    return found


def opened(folder: pathlib.Path, **changes: Any) -> TfdsSource:
    source = open_source("titled", directory=str(folder), split=changes.get("split", "train"), label_key=None)
    assert isinstance(source, TfdsSource)
    return source


def test_the_second_start_reads_no_record(folder: pathlib.Path, reads: list[int]) -> None:
    first = written(opened(folder), "caption")
    assert sorted(first) == sorted(SEVERAL.values()) and sorted(reads) == list(range(SIZE))
    assert written(opened(folder), "caption") == first and len(reads) == SIZE
    written(opened(folder), "title")
    written(opened(folder, split="train[:50%]"), "caption")
    assert len(reads) == 2 * SIZE + len(opened(folder, split="train[:50%]"))
    with pytest.raises(UserError):
        written(opened(folder), "absent")


@pytest.mark.parametrize("change", ["written anew", "damaged", "cut"])
def test_other_records_and_damage_are_read_anew(
    change: str, folder: pathlib.Path, reads: list[int], tmp_path: pathlib.Path
) -> None:
    shutil.copytree(folder, tmp_path / "sets")
    first = written(opened(tmp_path / "sets"), "caption")
    kept = next((tmp_path / "cache").rglob("*.npz"))
    if change == "written anew":
        for file in (tmp_path / "sets").rglob("*array_record*"):
            file.touch()
    content = bytearray(kept.read_bytes())
    content[content.index(b"picture")] ^= 1
    if change != "written anew":
        kept.write_bytes(content if change == "damaged" else content[:-30])
    assert written(opened(tmp_path / "sets"), "caption") == first and len(reads) == 2 * SIZE


def test_a_place_that_cannot_be_written_costs_time_alone(
    folder: pathlib.Path, reads: list[int], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "cache").write_text("")
    assert len(kept_captions.written(opened(folder), "caption")) == SIZE == len(reads)
