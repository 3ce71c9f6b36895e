"""Files are written whole or not at all; paths mean what people expect."""

from __future__ import annotations

import os
import pathlib
from typing import BinaryIO

import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.files import atomic_write, check_output, expand


@pytest.mark.parametrize("content", ["text", b"text", lambda file: file.write(b"text")])
def test_content_replaces_what_was_there(content: object, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("something longer")
    atomic_write(path, content)  # type: ignore[arg-type]
    assert path.read_text() == "text" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyError

    with pytest.raises(KeyError):
        atomic_write(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_links_are_replaced_and_their_targets_left_alone(tmp_path: pathlib.Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("precious")
    path.symlink_to(victim)
    (tmp_path / "file.part").symlink_to(victim)
    atomic_write(path, "new")
    assert victim.read_text() == "precious" and path.read_text() == "new" and not path.is_symlink()


def test_arrays_are_written_through_it(tmp_path: pathlib.Path) -> None:
    atomic_write(tmp_path / "x.npz", lambda file: np.savez(file, a=np.arange(3)))
    with np.load(tmp_path / "x.npz") as archive:
        assert archive["a"].tolist() == [0, 1, 2]


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError):
        atomic_write(tmp_path / "absent" / "file", "text")


def test_an_output_that_cannot_be_written_is_known_before(tmp_path: pathlib.Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    check_output(tmp_path / "new" / "x.png", "out", ".png", ".gif")
    assert list((tmp_path / "new").iterdir()) == []
    for name in ("x.jpg", "folder.png", "file/x.png", f"{251 * 'x'}.png"):  # what is written first has a longer name
        with pytest.raises(UserError) as caught:
            check_output(tmp_path / name, "out", ".png", ".gif")
        assert caught.value.field == "out"


def test_a_tilde_is_the_home_directory() -> None:
    assert expand("~/x.png", "out") == pathlib.Path(os.path.expanduser("~")) / "x.png"
    assert expand("x/~", "out") == pathlib.Path("x/~")


@pytest.mark.parametrize("text", ["", "~nobody_has_this_name/x", "l\udce4uf", "a\0b"])
def test_what_is_no_path_is_named(text: str) -> None:
    with pytest.raises(UserError) as caught:
        expand(text, "out")
    assert caught.value.field == "out"
