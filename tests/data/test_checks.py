"""Files of a folder that streams are read once, and again when they change; what is kept may be lost or damaged."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from archirf_jax.data import images, pipeline
from archirf_jax.data.checks import recall
from archirf_jax.data.fields import make_fields
from archirf_jax.data.folder_source import FolderSource
from archirf_jax.data.pipeline import load
from archirf_jax.errors import UserError
from tests.data import settings

SIZE = 12
LATER = 10**18  # nanoseconds


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "photos"
    for number in range(SIZE):
        draw(path / ("cat", "dog")[number % 2] / f"{number:02}.png")
    return path


@pytest.fixture(autouse=True)
def kept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder in which checks are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "archirf_jax" / "folders"


def draw(file: pathlib.Path, level: int = 7) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(file)


def checked(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, **given: Any) -> list[str]:
    """The names of the files that a start reads."""
    decode, read = images.decode, []

    def noted(image: Any, *rest: Any) -> Any:
        read.append(image.name)
        return decode(image, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(images, "decode", noted)
        load(settings.data(**{"name": f"folder:{folder}", "device_cache_mib": settings.STREAMED} | given))
    return sorted(read)


ALL = [f"{number:02}.png" for number in range(SIZE)]


def test_a_second_start_reads_nothing_and_the_folder_stays_as_it_was(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(folder.rglob("*"))
    assert checked(folder, monkeypatch) == ALL
    assert checked(folder, monkeypatch) == checked(folder, monkeypatch, flip=True, label_key=None) == []
    assert sorted(folder.rglob("*")) == before


def rewritten(file: pathlib.Path) -> None:
    """Other content of the same size, written later."""
    size = file.stat().st_size
    draw(file, 9)
    assert file.stat().st_size == size
    os.utime(file, ns=(LATER, LATER))


CHANGES: dict[str, tuple[Callable[[pathlib.Path], Any], list[str]]] = {
    "touched": (lambda file: os.utime(file, ns=(LATER, LATER)), ["02.png"]),
    "changed": (rewritten, ["02.png"]),
    "removed": (pathlib.Path.unlink, []),
    "renamed": (lambda file: file.rename(file.with_name("x.png")), ["x.png"]),
    "moved": (lambda file: file.rename(file.parents[1] / "dog" / file.name), ["02.png"]),
    "joined": (lambda file: draw(file.with_name("y.png")), ["y.png"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_is_new_or_changed_is_read_again(
    change: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked(folder, monkeypatch)
    act, expected = CHANGES[change]
    act(folder / "cat" / "02.png")
    assert checked(folder, monkeypatch) == expected
    assert checked(folder, monkeypatch) == []


@pytest.mark.parametrize("given", [{"image_size": 4}, {"channels": 3}, {"value_range": (0, 100)}])
def test_what_decides_the_check_makes_it_another_one(
    given: dict[str, Any], folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked(folder, monkeypatch)
    assert checked(folder, monkeypatch, **given) == ALL


def test_parts_of_a_folder_and_copies_of_it_have_checks_of_their_own(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [checked(folder, monkeypatch, split=split) for split in ("train[:50%]", "train[50%:]")]
    assert sorted(both[0] + both[1]) == ALL and both[0] and both[1]
    assert [checked(folder, monkeypatch, split=split) for split in ("train[:50%]", "train[50%:]")] == [[], []]
    folder.rename(folder.with_name("other"))
    assert checked(folder.with_name("other"), monkeypatch) == ALL


def test_with_a_field_that_may_read_other_files_nothing_is_taken_as_known(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked(folder, monkeypatch)
    data = settings.data(name=f"folder:{folder}")
    source, fields = FolderSource(folder), make_fields(data)
    assert recall(source, fields).passed.all()
    known = recall(source, fields | {"caption": fields["label"]})
    assert known.path is None and not known.passed.any()


def test_unreadable_files_are_named_at_every_start_and_mended_ones_are_read_alone(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "cat" / "02.png").write_bytes(b"not an image")
    for _ in range(2):
        caplog.clear()
        with pytest.raises(UserError) as caught:
            checked(folder, monkeypatch)
        assert "1 of 12" in str(caught.value) and "02.png" in caplog.text
    assert checked(folder, monkeypatch, skip_unreadable=True) == ["02.png"]
    draw(folder / "cat" / "02.png")
    assert checked(folder, monkeypatch) == ["02.png"]


DAMAGE: dict[str, Callable[[pathlib.Path], Any]] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:40]),
    "flipped": lambda file: file.write_bytes(file.read_bytes()[:60] + b"????" + file.read_bytes()[64:]),
    "another array": lambda file: np.savez(file, stamps=np.zeros((2, 2))),
    "another name": lambda file: np.savez(file, seals=np.zeros(2, np.uint64)),
    "objects": lambda file: np.savez(file, stamps=np.asarray([{}], object)),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "gone": pathlib.Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_check_is_made_anew(
    damage: str, folder: pathlib.Path, kept: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked(folder, monkeypatch)
    (file,) = kept.iterdir()
    DAMAGE[damage](file)
    assert checked(folder, monkeypatch) == ALL
    assert checked(folder, monkeypatch) == (ALL if damage == "a folder" else [])


def test_a_place_that_cannot_be_written_costs_time_alone(
    folder: pathlib.Path, kept: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_text("a file where the folder would be")
    assert checked(folder, monkeypatch) == checked(folder, monkeypatch) == ALL
    assert "is not kept" in caplog.text


def test_a_check_that_is_cut_short_goes_on_where_it_was_and_says_how_far_it_is(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(pipeline, "REPORT_SECONDS", 0)
    monkeypatch.setattr(pipeline, "WINDOW", 4)
    keep, times = pipeline.Checks.keep, []

    def killed(self: Any) -> None:
        keep(self)
        times.append(1)
        if len(times) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline.Checks, "keep", killed)
        checked(folder, monkeypatch)
    assert "4 of 12" in caplog.text and "8 of 12" in caplog.text
    assert len(checked(folder, monkeypatch)) == 4


def test_runs_that_start_at_once_do_not_disturb_each_other(
    folder: pathlib.Path, kept: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4)

    def start(_: int) -> int:
        together.wait()
        return len(load(settings.data(name=f"folder:{folder}", device_cache_mib=settings.STREAMED)))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(start, range(4))) == [SIZE] * 4
    assert checked(folder, monkeypatch) == [] and len(list(kept.iterdir())) == 1
