"""The sample command with more than labels: images to enlarge, texts, a classifier that guides, latents."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import adm_classifier, adm_ddpm, dit_ddpm, dit_rf, mmdit_rf
from tests.commands import drawing, saved
from tests.commands.drawing import PLAIN, arrays, refused
from tests.commands.saved import Saved

ROWS = 4


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def images_of(count: int = ROWS) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (count, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def upsampler(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    fields = saved.TINY_ADM | {"model.super_resolution": True, "sample.guidance.scale": 1.0}
    fields["conditioners.low_res"] = {"name": "given", "shapes": {"low_res": (8, 8, 1)}}
    return saved.save(adm_ddpm, tmp_path_factory.mktemp("upsampler"), fields).workdir


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run whose network takes texts: tokens of width 5 and vectors of width 7."""
    fields = saved.TINY_DIT | {"model.context": "text", "model.context_width": 5, "model.pooled_width": 7}
    fields |= {"model.depth_single": 0, "data.num_classes": 1, "sample.guidance.scale": 1.0}
    fields["conditioners"] = {"text": {"name": "given", "shapes": {"tokens": (3, 5), "pooled": (7,)}}}
    return saved.save(mmdit_rf, tmp_path_factory.mktemp("texts"), fields).workdir


def put(path: pathlib.Path, **arrays: np.ndarray) -> str:
    """The flag of a file of conditions."""
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"--conditions={path}"


def enlarging(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {"label": np.arange(ROWS), "low_res": images_of()} | changes


def wording(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {"tokens": random(2, ROWS, 3, 5), "pooled": random(3, ROWS, 7)} | changes


KINDS = {"upsampler": enlarging, "texts": wording}
every_kind = pytest.mark.parametrize("kind", KINDS)
FEW = (*PLAIN, "--per_class=2")


@pytest.fixture
def workdir(kind: str, request: pytest.FixtureRequest) -> pathlib.Path:
    return request.getfixturevalue(kind)


def assert_rows_differ(first: np.ndarray, second: np.ndarray, expected: list[bool]) -> None:
    """Of images, two a row."""
    apart = np.abs(first - second).reshape(-1, 2, 64).max(axis=(1, 2))
    assert [bool(each > 1) for each in apart] == expected, apart


@every_kind
def test_each_row_of_a_file_is_drawn_and_depends_on_what_it_says_alone(
    kind: str, workdir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    given = KINDS[kind]()
    first, labels = arrays(workdir, tmp_path, put(tmp_path / "a.npz", **given), *FEW)
    assert first.shape == (2 * ROWS, 8, 8, 1) and labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for name in given:
        other = given[name].copy()
        other[1] = other[2] = other[3]
        changed = put(tmp_path / "b.npz", **given | {name: other})
        assert_rows_differ(arrays(workdir, tmp_path, changed, *FEW)[0], first, [False, True, True, False])


def test_labels_are_rows_of_the_file(texts: pathlib.Path, tmp_path: pathlib.Path) -> None:
    flag = put(tmp_path / "a.npz", **wording())
    whole, _ = arrays(texts, tmp_path, flag, *FEW)
    some, labels = arrays(texts, tmp_path, flag, *FEW, "--labels=1,3")
    assert labels.tolist() == [1, 1, 3, 3]
    assert np.max(np.abs(some - whole[[2, 3, 6, 7]])) <= 1  # another batch size may round the last bit elsewhere
    assert refused(texts, flag, *FEW, "--labels=2-4").flag == "--labels"
    out = tmp_path / "x.png"
    drawing.sample(texts, flag, *FEW, f"--out={out}")
    with Image.open(out) as grid:
        assert grid.size == (2 * 40 + 1, ROWS * 40 + 3)


@every_kind
def test_guidance_moves_away_from_the_null_row_of_the_file(
    kind: str, workdir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    given = KINDS[kind]()
    null = {f"null_{name}": 0 * rows[0] for name, rows in given.items()}
    guided = (*FEW[:-2], "--guidance_scale=3", "--per_class=2")
    plain, _ = arrays(workdir, tmp_path, put(tmp_path / "a.npz", **given), *FEW)
    moved, _ = arrays(workdir, tmp_path, put(tmp_path / "b.npz", **given, **null), *guided)
    assert np.max(np.abs(moved - plain)) > 5
    # f + 3 (f - f) = f: where the null row is the row itself there is nothing to move from.
    own = {f"null_{name}": rows[2] for name, rows in given.items()}
    still, _ = arrays(workdir, tmp_path, put(tmp_path / "c.npz", **given, **own), *guided)
    assert_rows_differ(still, plain, [True, True, False, True])
    refusal = refused(workdir, put(tmp_path / "d.npz", **given), *guided)
    assert refusal.flag == "--conditions" and all(f"null_{name}" in refusal.line for name in given)


def test_texts_may_be_of_any_length_and_of_more_rows_than_classes(texts: pathlib.Path, tmp_path: pathlib.Path) -> None:
    given = dict(tokens=random(4, 12, 6, 5), pooled=random(5, 12, 7))
    images, labels = arrays(texts, tmp_path, put(tmp_path / "a.npz", **given), *PLAIN, "--per_class=1")
    assert labels.tolist() == list(range(10)) and images.shape == (10, 8, 8, 1)  # at most ten unless asked for
    _, labels = arrays(texts, tmp_path, put(tmp_path / "a.npz", **given), *PLAIN, "--per_class=1", "--labels=2-11")
    assert labels.tolist() == list(range(2, 12))


def test_a_smaller_image_is_enlarged_to_the_size_of_the_images(upsampler: pathlib.Path, tmp_path: pathlib.Path) -> None:
    small = images_of()[:, ::2, ::2]
    large = np.asarray(jax.image.resize(jnp.asarray(small), (ROWS, 8, 8, 1), "linear", antialias=False))
    ours, theirs = (
        arrays(upsampler, tmp_path, put(tmp_path / "a.npz", **enlarging(low_res=low_res)), *FEW)[0]
        for low_res in (small, large)
    )
    assert np.max(np.abs(ours - theirs)) <= 1


# Kind, what is wrong with its file, and a word of the answer.
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no images": ("upsampler", dict(low_res=None), "low_res"),
    "no tokens": ("texts", dict(tokens=None), "tokens"),
    "fewer labels": ("upsampler", dict(label=np.arange(3)), "label 3"),
    "fewer vectors": ("texts", dict(pooled=random(0, 2, 7)), "pooled 2"),
    "no rows": ("texts", dict(tokens=random(0, 0, 3, 5), pooled=random(0, 0, 7)), "rows"),
    "wider tokens": ("texts", dict(tokens=random(0, ROWS, 3, 6)), "(4, 3, 6)"),
    "wider vectors": ("texts", dict(pooled=random(0, ROWS, 8)), "(4, 8)"),
    "halves of labels": ("upsampler", dict(label=np.arange(ROWS) / 2), "float64"),
    "one label": ("upsampler", dict(label=np.int32(3)), "label"),
    "words": ("upsampler", dict(label=np.asarray(["a"] * ROWS)), "<U1"),
    "tokens without an axis": ("texts", dict(tokens=random(0, ROWS, 5)), "(4, 5)"),
    "images without channels": ("upsampler", dict(low_res=random(0, ROWS, 8, 8)), "(4, 8, 8)"),
    "images in colour": ("upsampler", dict(low_res=random(0, ROWS, 8, 8, 3)), "(4, 8, 8, 3)"),
    "labels of two axes": ("upsampler", dict(label=np.zeros((ROWS, 2), int)), "(4, 2)"),
    "a null of other tokens": ("texts", dict(null_tokens=random(0, 4, 5)), "(4, 5)"),
    "a label that does not exist": ("upsampler", dict(label=np.asarray([0, 1, 2, 11])), "11"),
    "a label below 0": ("upsampler", dict(label=np.asarray([0, 1, 2, -1])), "-1"),
    "nan": ("upsampler", dict(low_res=np.full((ROWS, 8, 8, 1), np.nan)), "nan"),
    "infinite as float32": ("upsampler", dict(low_res=np.full((ROWS, 8, 8, 1), 1e300)), "float32"),
    "a null of nan": ("texts", dict(null_tokens=np.full((3, 5), np.nan)), "nan"),
    "a field that nobody takes": ("texts", dict(mood=random(0, ROWS, 2)), "mood"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_file_of_conditions_is_refused(
    case: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path
) -> None:
    kind, changes, word = BAD[case]
    given = {name: array for name, array in (KINDS[kind]() | changes).items() if array is not None}
    refusal = refused(request.getfixturevalue(kind), put(tmp_path / "a.npz", **given), *FEW)
    assert refusal.flag == "--conditions" and word in refusal.line, refusal


def test_files_that_do_not_hold_arrays_are_refused(upsampler: pathlib.Path, tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "x.npy", images_of())
    (tmp_path / "words.npz").write_text("words")
    np.savez(tmp_path / "objects.npz", label=np.asarray([None]), low_res=np.asarray([{}]))
    for name in ("x.npy", "words.npz", "objects.npz", "absent.npz", "."):
        assert refused(upsampler, f"--conditions={tmp_path / name}", *FEW).flag == "--conditions"


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A DiT that a classifier may guide; by itself it draws grey images, so that the advice shows."""
    fields = saved.TINY_DIT | {"process.prediction": "x0"}
    return saved.save(dit_ddpm, tmp_path_factory.mktemp("guided"), fields, spread=0.02)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Of the same noise, trained on labelled images alone; as simple as can be, and sure of itself."""
    fields = saved.TINY_ADM | {"model.channel_mult": (1,), "model.attention_downsamples": (), "model.pool": "adaptive"}
    fields |= {"process.prediction": "x0", "process.variance": "fixed_large"}
    return saved.save(adm_classifier, tmp_path_factory.mktemp("classifier"), fields, spread=1.0, where="head")


def test_labels_alone_take_no_file(guided: Saved, tmp_path: pathlib.Path) -> None:
    flag = put(tmp_path / "a.npz", **enlarging())
    assert refused(guided.workdir, flag, *FEW).flag == "--conditions"


SCALE = 100
WAY = ("--grid=8", "--labels=0,3,7", "--per_class=6", "--solver=ddim", "--guidance_scale=1")


def advised(classifier: pathlib.Path, scale: float = SCALE) -> tuple[str, str]:
    return f"--classifier={classifier}", f"--classifier_scale={scale}"


@pytest.fixture(scope="module")
def plain(guided: Saved, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What it draws by itself."""
    return arrays(guided.workdir, tmp_path_factory.mktemp("plain"), *WAY)[0]


@pytest.fixture(scope="module")
def strong(guided: Saved, classifier: Saved, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What it draws by the classifier's advice."""
    return arrays(guided.workdir, tmp_path_factory.mktemp("strong"), *WAY, *advised(classifier.workdir))[0]


def test_a_classifier_changes_images_by_its_scale_and_at_0_not_at_all(
    guided: Saved, classifier: Saved, plain: np.ndarray, strong: np.ndarray, tmp_path: pathlib.Path
) -> None:
    none, weak = (
        arrays(guided.workdir, tmp_path, *WAY, *advised(classifier.workdir, scale))[0] for scale in (0, SCALE / 10)
    )
    np.testing.assert_array_equal(none, plain)
    assert 0 < np.mean(np.abs(weak - plain)) < np.mean(np.abs(strong - plain))


@pytest.mark.slow
def test_a_classifier_changes_images_of_ancestral_steps(
    guided: Saved, classifier: Saved, tmp_path: pathlib.Path
) -> None:
    way = (*WAY, "--solver=ddpm")
    plain, none, weak, strong = (
        arrays(guided.workdir, tmp_path, *way, *more)[0]
        for more in ((), *(advised(classifier.workdir, scale) for scale in (0, SCALE / 10, SCALE)))
    )
    np.testing.assert_array_equal(none, plain)
    assert 0 < np.mean(np.abs(weak - plain)) < np.mean(np.abs(strong - plain))


def test_a_classifier_moves_images_towards_what_it_takes_for_their_labels(
    classifier: Saved, plain: np.ndarray, strong: np.ndarray
) -> None:
    log_p = jax.jit(classifier.task.log_p(classifier.params))
    sureness = []
    for images in (plain, strong):
        x = jnp.asarray((images - 127.5) / 127.5, jnp.float32)
        labels = jnp.repeat(jnp.asarray([0, 3, 7]), 6)
        sureness.append(log_p(x, jnp.zeros(len(x)), {"label": labels}).reshape(3, 6).mean(axis=1))
    assert np.all(sureness[1] > sureness[0])  # of every label


@pytest.mark.slow
def test_a_classifier_and_guidance_by_labels_act_together(
    guided: Saved, classifier: Saved, strong: np.ndarray, tmp_path: pathlib.Path
) -> None:
    alone, both = (
        arrays(guided.workdir, tmp_path, *WAY[:-1], "--guidance_scale=2", *more)[0]
        for more in ((), advised(classifier.workdir))
    )
    assert np.max(np.abs(both - alone)) > 1 and np.any(both != strong)


def test_the_scale_of_a_classifier_is_the_runs_where_no_flag_says_another(
    guided: Saved, classifier: Saved, plain: np.ndarray, strong: np.ndarray, tmp_path: pathlib.Path
) -> None:
    own = pathlib.Path(shutil.copytree(guided.workdir, tmp_path / "own"))
    saved.change(own, {"sample.classifier_scale": float(SCALE)})
    drawn, _ = arrays(own, tmp_path, *WAY, advised(classifier.workdir)[0])
    np.testing.assert_array_equal(drawn, strong)
    assert np.any(drawn != plain)


@pytest.mark.parametrize(
    ("field", "value"),
    [("data.num_classes", 9), ("data.image_size", 16), ("data.channels", 3), ("process.schedule", "cosine")],
)
def test_a_classifier_of_other_noise_classes_or_images_is_refused(
    field: str, value: Any, guided: Saved, classifier: Saved, tmp_path: pathlib.Path
) -> None:
    copy = pathlib.Path(shutil.copytree(classifier.workdir, tmp_path / "copy"))
    saved.change(copy, {field: value} | ({"model.image_size": value} if field == "data.image_size" else {}))
    refusal = refused(guided.workdir, *FEW, f"--classifier={copy}")
    assert refusal.flag == "--classifier" and f"{field} is {value!r} there" in refusal.line


def test_a_classifier_may_have_left_unsaid_what_goes_without_saying(
    guided: Saved, classifier: Saved, strong: np.ndarray, tmp_path: pathlib.Path
) -> None:
    """As an imported run does, which holds the fields of its process that were published."""
    copy = pathlib.Path(shutil.copytree(classifier.workdir, tmp_path / "copy"))
    saved.change(copy, {"process": {"name": "ddpm", "schedule": "linear", "steps": 1000, "prediction": "x0"}})
    np.testing.assert_array_equal(arrays(guided.workdir, tmp_path, *WAY, *advised(copy))[0], strong)


def test_what_is_not_a_classifier_is_refused(guided: Saved, classifier: Saved, tmp_path: pathlib.Path) -> None:
    shutil.copy(classifier.workdir / "config.json", tmp_path)
    for other in (guided.workdir, tmp_path, tmp_path / "absent"):
        assert refused(guided.workdir, *FEW, f"--classifier={other}").flag == "--classifier"
    assert refused(guided.workdir, *FEW, "--classifier_scale=2").flag == "--classifier_scale"
    for scale in ("-1", "nan"):
        flags = (f"--classifier={classifier.workdir}", f"--classifier_scale={scale}")
        assert refused(guided.workdir, *FEW, *flags).flag == "--classifier_scale"
    assert refused(classifier.workdir, *FEW).flag == "--workdir"  # it does not draw images itself


def test_latents_are_written_as_float32_arrays_and_as_nothing_else(tmp_path: pathlib.Path) -> None:
    channels = 2  # neither grey nor in colour
    run = saved.save(dit_rf, tmp_path / "run", saved.TINY_DIT | {"data.channels": channels})
    out = tmp_path / "x.npz"
    drawing.sample(run.workdir, *FEW, "--labels=0-1", f"--out={out}")
    with np.load(out) as archive:
        latents, labels = archive["images"], archive["labels"]
    assert latents.shape == (4, 8, 8, channels) and latents.dtype == np.float32 and labels.tolist() == [0, 0, 1, 1]
    assert np.max(np.abs(latents)) > 1 and len(np.unique(latents)) == latents.size  # neither cut nor rounded
    for suffix in (".png", ".gif"):
        assert refused(run.workdir, *FEW, f"--out={tmp_path / 'x'}{suffix}").flag == "--out"
