"""What the sample command makes of noises and images: ways between two, images begun from one, filled holes."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from archirf_jax.data.images import decode
from archirf_jax.data.sources import open_source
from archirf_jax.samplers import invariants
from tests.commands.drawing import PLAIN, arrays, refused, sample

STOCHASTIC = ("--solver=ddpm", "--steps=4", "--guidance_scale=1")


@pytest.fixture(scope="module")
def three(data_dir: pathlib.Path) -> np.ndarray:
    """Training image number 3."""
    source = open_source("digits", directory=str(data_dir), split="train", label_key="label")
    return decode(source[3]["image"], 8, 1).astype(int)


@pytest.fixture
def three_as_a_file(three: np.ndarray, tmp_path: pathlib.Path) -> pathlib.Path:
    Image.fromarray(three[..., 0].astype(np.uint8)).save(tmp_path / "three.png")
    return tmp_path / "three.png"


def shown(workdir: pathlib.Path, out: pathlib.Path, *arguments: str) -> list[np.ndarray]:
    """The images (8, 8) of a picture's first row."""
    sample(workdir, f"--out={out / 'x.png'}", *arguments)
    with Image.open(out / "x.png") as opened:
        row = np.asarray(opened).astype(int)[:40]
    return [row[::5, left : left + 40 : 5] for left in range(0, row.shape[1], 41)]


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(np.mean((first - second) ** 2)))


def test_a_way_between_two_seeds_starts_and_ends_at_the_images_of_both(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    way, labels = arrays(whole_run, tmp_path, *PLAIN, "--labels=2,5", "--per_class=4", "--seed=1", "--to_seed=6")
    assert labels.tolist() == [2] * 4 + [5] * 4
    ends = [arrays(whole_run, tmp_path, *PLAIN, "--labels=2,5", "--per_class=1", f"--seed={s}")[0] for s in (1, 6)]
    rows = way.reshape(2, 4, 8, 8, 1)
    assert np.max(np.abs(rows[:, 0] - ends[0])) <= 1 and np.max(np.abs(rows[:, -1] - ends[1])) <= 1
    assert distance(ends[0], ends[1]) > 10
    # On an arc of normal noises each step is about as long as the others.
    steps = [distance(rows[:, i], rows[:, i + 1]) for i in range(3)]
    assert max(steps) < 2 * min(steps) and max(steps) < distance(ends[0], ends[1])


def test_a_way_between_two_images_begins_and_ends_with_them_and_next_to_them_their_decoded_noises(
    whole_run: pathlib.Path, tmp_path: pathlib.Path, three: np.ndarray, three_as_a_file: pathlib.Path
) -> None:
    more = ("--image_to=17", "--per_class=4", "--steps=16")  # decoding undoes encoding to the order of a step
    way, labels = arrays(whole_run, tmp_path, *PLAIN, "--image=3", *more)
    assert way.shape == (4, 8, 8, 1) and labels.tolist() == [10] * 4  # what was given is not a sample
    assert np.max(np.abs(way[0] - three)) <= 2 and distance(way[0], way[3]) > 30
    columns = shown(whole_run, tmp_path, *PLAIN, "--image=3", *more)
    np.testing.assert_array_equal(columns[0], three[..., 0])
    assert len(columns) == 6 and np.max(np.abs(columns[4] - columns[5])) <= 2
    np.testing.assert_array_equal(way, arrays(whole_run, tmp_path, *PLAIN, f"--image={three_as_a_file}", *more)[0])


@pytest.mark.parametrize("way", [(), ("--to_seed=6",), ("--image=3",), ("--image=3", "--image_to=17")])
def test_what_is_the_same_at_every_step_is_computed_once_unless_the_user_says_no(
    whole_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, way: tuple[str, ...]
) -> None:
    """With as many steps as no other test has, so that its program is traced here."""
    loops: list[Any] = []
    plain = jax.lax.scan
    monkeypatch.setattr(invariants, "scan", lambda *args: loops.append(args) or plain(*args))
    how = (*PLAIN, *way, "--steps=5", "--per_class=4", *(() if "--image_to=17" in way else ("--labels=2",)))
    sample(whole_run, f"--out={tmp_path / 'x.npz'}", *how, "--sample.hoist=False")
    assert not loops
    sample(whole_run, f"--out={tmp_path / 'y.npz'}", *how)
    assert len(loops) == (2 if "--image_to=17" in way else 1)


def test_the_more_of_a_image_becomes_noise_the_less_is_left_of_it(
    whole_run: pathlib.Path, tmp_path: pathlib.Path, three: np.ndarray
) -> None:
    def begun(*strength: str) -> np.ndarray:
        images, labels = arrays(whole_run, tmp_path, *PLAIN, "--image=3", "--labels=0,8", "--per_class=4", *strength)
        assert labels.tolist() == [0] * 4 + [8] * 4  # what was given is not a sample
        return images.reshape(2, 4, 8, 8, 1)

    kept = [begun(f"--strength={strength}") for strength in (0.25, 0.6, 1)]
    far = [distance(images, three) for images in kept]
    assert far == sorted(far) and far[0] < 0.5 * far[-1]
    np.testing.assert_array_equal(begun(), kept[1])
    fresh = arrays(whole_run, tmp_path, *PLAIN, "--labels=0,8", "--per_class=4")[0]
    assert np.max(np.abs(kept[2].reshape(fresh.shape) - fresh)) <= 1


@pytest.mark.parametrize(
    ("mask", "hole"),
    [
        ("left", np.s_[:, :4]),
        ("right", np.s_[:, 4:]),
        ("top", np.s_[:4]),
        ("bottom", np.s_[4:]),
        ("file", np.s_[2:5, 1:7]),
    ],
)
def test_a_hole_is_filled_and_every_other_pixel_stays(
    mask: str, hole: tuple[slice, ...], whole_run: pathlib.Path, tmp_path: pathlib.Path, three: np.ndarray
) -> None:
    made = np.zeros((8, 8), bool)
    made[hole] = True
    if mask == "file":
        mask = str(tmp_path / "mask.png")
        Image.fromarray(made).save(mask)
    solver = STOCHASTIC if made.sum() == 18 else PLAIN
    images, labels = arrays(
        whole_run, tmp_path, *solver, "--image=3", f"--mask={mask}", "--labels=0,8", "--per_class=4"
    )
    assert labels.tolist() == [0] * 4 + [8] * 4  # what was given is not a sample
    np.testing.assert_array_equal(images[:, ~made], np.broadcast_to(three[~made], (8, (~made).sum(), 1)))
    if mask == "left":
        given = shown(whole_run, tmp_path, *solver, "--image=3", "--mask=left", "--labels=0", "--per_class=1")[0]
        np.testing.assert_array_equal(given, np.where(made, 128, three[..., 0]))
    filled = images[:, made]
    assert min(distance(a, b) for i, a in enumerate(filled) for b in filled[:i]) > 5


def test_edits_do_not_depend_on_the_batch_they_are_drawn_in(whole_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for edit in (("--image=3", "--mask=left"), ("--to_seed=4",)):
        common = (*STOCHASTIC, *edit, "--labels=0,8", "--per_class=4")
        whole, parts = (arrays(whole_run, tmp_path, *common, *size)[0] for size in ((), ("--batch_size=3",)))
        assert np.max(np.abs(whole - parts)) <= 1


@pytest.mark.parametrize(
    ("edit", "frames", "rows"),
    [(("--image=3", "--image_to=17"), 6, 1), (("--image=3", "--mask=top", "--labels=0,8"), 5, 2)],
)
def test_an_animation_shows_one_column_a_frame(
    edit: tuple[str, ...], frames: int, rows: int, whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    sample(whole_run, *PLAIN, *edit, "--per_class=4", f"--out={tmp_path / 'x.gif'}")
    with Image.open(tmp_path / "x.gif") as animation:
        assert animation.n_frames == frames and animation.size == (40, 41 * rows - 1)


# Arguments -> the flag that the answer names.
BAD = {
    "--mask=left": "--image",
    "--image_to=3": "--image",
    "--strength=0.5": "--image",
    "--image=99999": "--image",
    "--image=missing.png": "--image",
    "--image=README.md": "--image",
    "--image=3 --image_to=x.png --solver=euler --guidance_scale=1": "--image_to",
    "--image=3 --image_to=4 --labels=3": "--labels",
    "--image=3 --image_to=4 --solver=euler --guidance_scale=2": "--guidance_scale",
    "--image=3 --image_to=4 --solver=heun --guidance_scale=1": "--solver",
    "--image=3 --image_to=4 --solver=ddim --eta=1 --guidance_scale=1": "--eta",
    "--image=3 --image_to=4 --solver=euler --guidance_scale=1 --threshold=static": "--threshold",
    "--image=3 --strength=0": "--strength",
    "--image=3 --strength=1.5": "--strength",
    "--image=3 --to_seed=3": "--image",
    "--image=3 --image_to=4 --mask=left": "--strength",
    "--image=3 --mask=middle": "--mask",
    "--image=3 --mask=README.md": "--mask",
    "--to_seed=-1": "--to_seed",
    "--image=3 --stride=2 --out=x.gif": "--stride",
}


@pytest.mark.parametrize("arguments", BAD)
def test_what_does_not_go_together_is_refused_with_its_flag(arguments: str, whole_run: pathlib.Path) -> None:
    refusal = refused(whole_run, *arguments.split(" "))
    assert refusal.flag == BAD[arguments], refusal
