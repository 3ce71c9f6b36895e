"""The sample command: formats, labels, seeds, and that it needs nothing but the run directory and the EMA weights."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from archirf_jax.errors import UserError
from archirf_jax.sample import parse_labels
from tests import running


def arrays(workdir: pathlib.Path, out: pathlib.Path, *extra: str) -> tuple[np.ndarray, np.ndarray]:
    done = running.sample(workdir, f"--out={out}", *extra)
    assert done.returncode == 0, done.stderr
    with np.load(out) as archive:
        return archive["images"], archive["labels"]


def test_npz_holds_uint8_images_and_int32_labels_of_the_asked_classes(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    images, labels = arrays(whole_run, tmp_path / "x.npz", "--labels=0-2,7", "--per_class=3")
    assert images.shape == (12, 8, 8, 1) and images.dtype == np.uint8
    assert labels.dtype == np.int32 and labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 7, 7, 7]
    assert images.std() > 10


def test_a_picture_depends_on_label_number_and_seed_but_not_on_its_batch(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    many, _ = arrays(whole_run, tmp_path / "a.npz", "--labels=0-9", "--per_class=3")
    few, _ = arrays(whole_run, tmp_path / "b.npz", "--labels=7", "--per_class=2", "--batch_size=1")
    other, _ = arrays(whole_run, tmp_path / "c.npz", "--labels=7", "--per_class=2", "--seed=1")
    assert np.max(np.abs(many[21:23].astype(int) - few)) <= 1  # another batch size may round the last bit elsewhere
    assert np.max(np.abs(other.astype(int) - few)) > 10


def test_a_grid_has_one_row_a_class_and_a_gif_one_frame_a_state(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for name in ("x.png", "x.gif"):
        done = running.sample(whole_run, f"--out={tmp_path / name}", "--labels=0-1", "--per_class=3", "--steps=6")
        assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "x.png") as grid, Image.open(tmp_path / "x.gif") as animation:
        assert grid.size == animation.size == (3 * 40 + 2, 2 * 40 + 1)
        assert animation.n_frames == 7


def test_it_needs_nothing_but_the_ema_weights_and_the_saved_configuration(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    bare = tmp_path / "bare"
    for name in ("config.json", "checkpoints/60/_CHECKPOINT_METADATA", "checkpoints/60/commit_success.txt"):
        if (whole_run / name).exists():
            (bare / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(whole_run / name, bare / name)
    shutil.copytree(whole_run / "checkpoints/60/ema", bare / "checkpoints/60/ema")
    ours, _ = arrays(bare, tmp_path / "a.npz")
    theirs, _ = arrays(whole_run, tmp_path / "b.npz")
    assert np.array_equal(ours, theirs)


def test_guidance_changes_the_pictures(whole_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    off, _ = arrays(whole_run, tmp_path / "a.npz", "--guidance_scale=1")
    on, _ = arrays(whole_run, tmp_path / "b.npz", "--guidance_scale=4")
    assert not np.array_equal(off, on)


def test_labels_are_lists_and_ranges() -> None:
    assert parse_labels("0-2,7", 10) == [0, 1, 2, 7]
    assert parse_labels("3", 10) == [3]
    assert parse_labels(None, 3) == [0, 1, 2] and len(parse_labels(None, 1000)) == 10


@pytest.mark.parametrize("text", ["0-10", "10", "a", "1,,2", "5-3", "", "-1", "1-2-3", "²", "0-99999999999"])
def test_wrong_labels_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--labels"):
        parse_labels(text, 10)


BAD = {
    "label out of range": (["--labels=0-10"], ["label 10", "0-9"]),
    "unknown format": (["--out=x.jpg"], ["x.jpg", ".png"]),
    "unknown step": (["--step=7"], ["step 7", "60, 40, 20"]),
    "no steps": (["--steps=0"], ["--steps", "[1, 1000000]"]),
    "unknown solver": (["--solver=eular"], ["eular", "did you mean 'euler'"]),
    "no number for guidance": (["--guidance_scale=nan"], ["guidance_scale", "finite"]),
    "negative guidance": (["--guidance_scale=-1"], ["guidance_scale", "-1"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_line_and_exit_code_2(case: str, whole_run: pathlib.Path) -> None:
    overrides, expected = BAD[case]
    done = running.sample(whole_run, *overrides)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: ")
    assert all(word in done.stderr for word in expected), done.stderr


def test_a_directory_without_a_run_or_without_a_checkpoint_is_refused(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    none = running.sample(tmp_path)
    assert none.returncode == 2 and "holds no run" in none.stderr and none.stderr.count("\n") == 1
    shutil.copy(whole_run / "config.json", tmp_path)
    empty = running.sample(tmp_path)
    assert empty.returncode == 2 and "no usable checkpoint" in empty.stderr and empty.stderr.count("\n") == 1
