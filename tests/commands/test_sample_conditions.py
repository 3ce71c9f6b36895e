"""The sample command with more than labels: pictures to enlarge, texts, a classifier's advice, latents."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import adm_classifier, adm_ddpm, dit_ddpm, dit_rf, mmdit_rf
from tests.commands import inside, saved
from tests.commands.inside import PLAIN, complaint

TRANSFORMER = {"model.hidden_size": 32, "model.depth": 1, "model.num_heads": 2, "model.registers": 0}
ROWS = 4


class Run(NamedTuple):
    """A run directory, its task and its average."""

    workdir: pathlib.Path
    task: Any
    params: Any


def saved_run(config: Any, workdir: pathlib.Path, fields: dict[str, Any], spread: float = 0.1, where: str = "") -> Run:
    return Run(workdir, *saved.save(config.get_config(), workdir, fields, spread, where))


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pictures(count: int = ROWS) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (count, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def upsampler(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    fields = saved.TINY_ADM | {"model.super_resolution": True, "sample.guidance_scale": 1.0}
    return saved_run(adm_ddpm, tmp_path_factory.mktemp("upsampler"), fields).workdir


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run whose network takes texts: tokens of width 5 and vectors of width 7."""
    fields = TRANSFORMER | {"model.context": "text", "model.context_width": 5, "model.pooled_width": 7}
    fields |= {"model.depth_single": 0, "data.num_classes": 1, "sample.guidance_scale": 1.0}
    return saved_run(mmdit_rf, tmp_path_factory.mktemp("texts"), fields).workdir


def put(path: pathlib.Path, **arrays: np.ndarray) -> str:
    """The flag of a file of conditions."""
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"--conditions={path}"


def enlarging(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {"label": np.arange(ROWS), "low_res": pictures()} | changes


def wording(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {"tokens": random(2, ROWS, 3, 5), "pooled": random(3, ROWS, 7)} | changes


KINDS = {"upsampler": enlarging, "texts": wording}
every_kind = pytest.mark.parametrize("kind", KINDS)
FEW = (*PLAIN, "--per_class=2")


@pytest.fixture
def workdir(kind: str, request: pytest.FixtureRequest) -> pathlib.Path:
    return request.getfixturevalue(kind)


def assert_rows_differ(first: np.ndarray, second: np.ndarray, expected: list[bool]) -> None:
    """Of pictures, two a row."""
    apart = np.abs(first - second).reshape(-1, 2, 64).max(axis=(1, 2))
    assert [bool(each > 1) for each in apart] == expected, apart


@every_kind
def test_each_row_of_a_file_is_drawn_and_depends_on_what_it_says_alone(
    kind: str, workdir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    given = KINDS[kind]()
    first, labels = inside.arrays(workdir, tmp_path, put(tmp_path / "a.npz", **given), *FEW)
    assert first.shape == (2 * ROWS, 8, 8, 1) and labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for name in given:
        other = given[name].copy()
        other[1] = other[2] = other[3]
        changed = put(tmp_path / "b.npz", **given | {name: other})
        assert_rows_differ(inside.arrays(workdir, tmp_path, changed, *FEW)[0], first, [False, True, True, False])


@every_kind
def test_labels_are_rows_of_the_file(kind: str, workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    flag = put(tmp_path / "a.npz", **KINDS[kind]())
    whole, _ = inside.arrays(workdir, tmp_path, flag, *FEW)
    some, labels = inside.arrays(workdir, tmp_path, flag, *FEW, "--labels=1,3")
    assert labels.tolist() == [1, 1, 3, 3]
    assert np.max(np.abs(some - whole[[2, 3, 6, 7]])) <= 1  # another batch size may round the last bit elsewhere
    said = complaint(workdir, flag, *FEW, "--labels=2-4")
    assert "--labels: label 4 is out of range; this run has the labels 0-3" in said
    out = tmp_path / "x.png"
    inside.sample(workdir, flag, *FEW, f"--out={out}")
    with Image.open(out) as grid:
        assert grid.size == (2 * 40 + 1, ROWS * 40 + 3)


@every_kind
def test_guidance_moves_away_from_the_null_row_of_the_file(
    kind: str, workdir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    given = KINDS[kind]()
    null = {f"null_{name}": 0 * rows[0] for name, rows in given.items()}
    guided = (*FEW[:-2], "--guidance_scale=3", "--per_class=2")
    plain, _ = inside.arrays(workdir, tmp_path, put(tmp_path / "a.npz", **given), *FEW)
    moved, _ = inside.arrays(workdir, tmp_path, put(tmp_path / "b.npz", **given, **null), *guided)
    assert np.max(np.abs(moved - plain)) > 5
    # f + 3 (f - f) = f: where the null row is the row itself there is nothing to move from.
    own = {f"null_{name}": rows[2] for name, rows in given.items()}
    still, _ = inside.arrays(workdir, tmp_path, put(tmp_path / "c.npz", **given, **own), *guided)
    assert_rows_differ(still, plain, [True, True, False, True])
    said = complaint(workdir, put(tmp_path / "d.npz", **given), *guided)
    first = sorted(given)[0]
    assert f"--conditions: guidance needs null_{first}, null_" in said and "--guidance_scale=1" in said


def test_texts_may_be_of_any_length_and_of_more_rows_than_classes(texts: pathlib.Path, tmp_path: pathlib.Path) -> None:
    given = dict(tokens=random(4, 12, 6, 5), pooled=random(5, 12, 7))
    images, labels = inside.arrays(texts, tmp_path, put(tmp_path / "a.npz", **given), *PLAIN, "--per_class=1")
    assert labels.tolist() == list(range(10)) and images.shape == (10, 8, 8, 1)  # at most ten unless asked for
    more, _ = inside.arrays(texts, tmp_path, put(tmp_path / "a.npz", **given), *PLAIN, "--per_class=1", "--labels=11")
    assert more.shape == (1, 8, 8, 1)


def test_a_smaller_picture_is_enlarged_to_the_size_of_the_images(
    upsampler: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    small = pictures()[:, ::2, ::2]
    large = np.asarray(jax.image.resize(jnp.asarray(small), (ROWS, 8, 8, 1), "linear", antialias=False))
    ours, theirs = (
        inside.arrays(upsampler, tmp_path, put(tmp_path / "a.npz", **enlarging(low_res=low_res)), *FEW)[0]
        for low_res in (small, large)
    )
    assert np.max(np.abs(ours - theirs)) <= 1


@every_kind
def test_a_network_that_needs_conditions_asks_for_them(kind: str, workdir: pathlib.Path) -> None:
    said = complaint(workdir, *FEW)
    assert said == f"--conditions: this network needs {', '.join(sorted(KINDS[kind]()))}; give an .npz file"


BAD: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "no pictures": ("upsampler", dict(low_res=None), ["is no .npz file with label, low_res", "low_res"]),
    "no tokens": ("texts", dict(tokens=None), ["is no .npz file with pooled, tokens", "tokens"]),
    "fewer labels": ("upsampler", dict(label=np.arange(3)), ["equally many rows", "label 3", "low_res 4"]),
    "fewer vectors": ("texts", dict(pooled=random(0, 2, 7)), ["equally many rows", "pooled 2", "tokens 4"]),
    "no rows": ("texts", dict(tokens=random(0, 0, 3, 5), pooled=random(0, 0, 7)), ["equally many rows"]),
    "wider tokens": (
        "texts",
        dict(tokens=random(0, ROWS, 3, 6)),
        ["tokens has the shape (4, 3, 6)", "takes (rows, any, 5)"],
    ),
    "wider vectors": ("texts", dict(pooled=random(0, ROWS, 8)), ["pooled has the shape (4, 8)", "takes (rows, 7)"]),
    "halves of labels": ("upsampler", dict(label=np.arange(ROWS) / 2), ["label holds float64, not integers"]),
    "one label": ("upsampler", dict(label=np.int32(3)), ["label has the shape ()", "takes (rows)"]),
    "words": ("upsampler", dict(label=np.asarray(["a"] * ROWS)), ["label holds <U1, not integers"]),
    "tokens without an axis": ("texts", dict(tokens=random(0, ROWS, 5)), ["tokens has the shape (4, 5)"]),
    "pictures without channels": (
        "upsampler",
        dict(low_res=random(0, ROWS, 8, 8)),
        ["low_res has the shape (4, 8, 8)"],
    ),
    "pictures in colour": (
        "upsampler",
        dict(low_res=random(0, ROWS, 8, 8, 3)),
        ["(4, 8, 8, 3)", "(rows, any, any, 1)"],
    ),
    "labels of two axes": ("upsampler", dict(label=np.zeros((ROWS, 2), int)), ["label has the shape (4, 2)"]),
    "a null of other tokens": (
        "texts",
        dict(null_tokens=random(0, 4, 5)),
        ["null_tokens is float32 of shape (4, 5)", "(3, 5)"],
    ),
    "a label that there is not": (
        "upsampler",
        dict(label=np.asarray([0, 1, 2, 11])),
        ["label 11 is out of range; this run has 0-9"],
    ),
    "a label below 0": ("upsampler", dict(label=np.asarray([0, 1, 2, -1])), ["label -1 is out of range"]),
    "nan": ("upsampler", dict(low_res=np.full((ROWS, 8, 8, 1), np.nan)), ["low_res holds nan or infinity"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_file_of_conditions_is_answered_in_one_line(
    case: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path
) -> None:
    kind, changes, expected = BAD[case]
    given = {name: array for name, array in (KINDS[kind]() | changes).items() if array is not None}
    said = complaint(request.getfixturevalue(kind), put(tmp_path / "a.npz", **given), *FEW)
    assert said.startswith("--conditions: ") and all(word in said for word in expected), said


def test_files_that_are_no_arrays_are_answered_in_one_line(upsampler: pathlib.Path, tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "x.npy", pictures())
    (tmp_path / "words.npz").write_text("words")
    np.savez(tmp_path / "objects.npz", label=np.asarray([None]), low_res=np.asarray([{}]))
    for name in ("x.npy", "words.npz", "objects.npz", "absent.npz", "."):
        said = complaint(upsampler, f"--conditions={tmp_path / name}", *FEW)
        assert said.startswith("--conditions: ") and "is no .npz file with label, low_res" in said


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A DiT that a classifier may guide; by itself it draws grey pictures, so that the advice shows."""
    fields = TRANSFORMER | {"process.prediction": "x0"}
    return saved_run(dit_ddpm, tmp_path_factory.mktemp("guided"), fields, spread=0.02)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of the same noise, trained on labelled images alone; as simple as can be, and sure of itself."""
    fields = saved.TINY_ADM | {"model.channel_mult": (1,), "model.attention_downsamples": (), "model.pool": "adaptive"}
    fields |= {"process.prediction": "x0", "process.condition_dropout": 0.0, "process.variance": "fixed_large"}
    return saved_run(adm_classifier, tmp_path_factory.mktemp("classifier"), fields, spread=1.0, where="head")


def test_labels_alone_take_no_file(guided: Run, tmp_path: pathlib.Path) -> None:
    flag = put(tmp_path / "a.npz", **enlarging())
    assert complaint(guided.workdir, flag, *FEW) == "--conditions: this network takes labels alone; leave it out"


SCALE = 100
WAY = ("--grid=8", "--labels=0,3,7", "--per_class=6")


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_a_classifier_changes_pictures_by_its_scale_and_at_0_not_at_all(
    solver: str, guided: Run, classifier: Run, tmp_path: pathlib.Path
) -> None:
    common, advice = (*WAY, f"--solver={solver}", "--guidance_scale=1"), f"--classifier={classifier.workdir}"
    plain, _ = inside.arrays(guided.workdir, tmp_path, *common)
    none, _ = inside.arrays(guided.workdir, tmp_path, *common, advice, "--classifier_scale=0")
    np.testing.assert_array_equal(none, plain)
    weak, strong = (
        inside.arrays(guided.workdir, tmp_path, *common, advice, f"--classifier_scale={scale}")[0]
        for scale in (SCALE / 10, SCALE)
    )
    assert 0 < np.mean(np.abs(weak - plain)) < np.mean(np.abs(strong - plain))


def test_a_classifier_moves_pictures_towards_what_it_takes_for_their_labels(
    guided: Run, classifier: Run, tmp_path: pathlib.Path
) -> None:
    log_p = jax.jit(classifier.task.log_p(classifier.params))
    sureness = []
    for more in ((), (f"--classifier={classifier.workdir}", f"--classifier_scale={SCALE}")):
        common = (*WAY, "--solver=ddim", "--guidance_scale=1")
        images, labels = inside.arrays(guided.workdir, tmp_path, *common, *more)
        x = jnp.asarray((images - 127.5) / 127.5, jnp.float32)
        sureness.append(log_p(x, jnp.zeros(len(x)), jnp.asarray(labels)).reshape(3, 6).mean(axis=1))
    assert np.all(sureness[1] > sureness[0])  # of every label


def test_a_classifier_and_guidance_by_labels_act_together(guided: Run, classifier: Run, tmp_path: pathlib.Path) -> None:
    common, advice = (*WAY, "--solver=ddim", "--guidance_scale=2"), f"--classifier={classifier.workdir}"
    drawn = [
        inside.arrays(guided.workdir, tmp_path, *common, *more)[0]
        for more in ((), (advice, f"--classifier_scale={SCALE}"))
    ]
    assert np.max(np.abs(drawn[0] - drawn[1])) > 1


def test_the_scale_of_a_classifier_is_the_runs_unless_the_flag_says_another(
    guided: Run, classifier: Run, tmp_path: pathlib.Path
) -> None:
    config = json.loads((guided.workdir / "config.json").read_text())
    own = shutil.copytree(guided.workdir, tmp_path / "own")
    config["sample"]["classifier_scale"] = float(SCALE)
    (own / "config.json").write_text(json.dumps(config))
    common = (*WAY, "--solver=ddim", "--guidance_scale=1", f"--classifier={classifier.workdir}")
    ways = ((own, ()), (guided.workdir, (f"--classifier_scale={SCALE}",)), (guided.workdir, ()))
    drawn = [inside.arrays(workdir, tmp_path, *common, *scale)[0] for workdir, scale in ways]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])


@pytest.mark.parametrize(
    ("field", "value"),
    [("data.num_classes", 9), ("data.image_size", 16), ("data.channels", 3), ("process.schedule", "cosine")],
)
def test_a_classifier_of_other_noise_classes_or_images_is_refused(
    field: str, value: Any, guided: Run, classifier: Run, tmp_path: pathlib.Path
) -> None:
    config = json.loads((classifier.workdir / "config.json").read_text())
    group, _, name = field.partition(".")
    was, config[group][name] = config[group][name], value
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = complaint(guided.workdir, *FEW, f"--classifier={tmp_path}")
    assert said.startswith(f"--classifier: {str(tmp_path)!r} must have the process, classes and image size")
    assert f"config.{field} is {value!r} there and {was!r} here" in said


def test_a_classifier_may_have_left_unsaid_what_goes_without_saying(
    guided: Run, classifier: Run, tmp_path: pathlib.Path
) -> None:
    """As an imported run does, which holds the fields of its process that were published."""
    copy = shutil.copytree(classifier.workdir, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["process"] = {name: config["process"][name] for name in ("name", "schedule", "steps", "prediction")}
    (copy / "config.json").write_text(json.dumps(config))
    ways = [(*WAY, "--solver=ddim", f"--classifier={workdir}") for workdir in (copy, classifier.workdir)]
    np.testing.assert_array_equal(*(inside.arrays(guided.workdir, tmp_path, *way)[0] for way in ways))


def test_what_is_no_classifier_is_refused(guided: Run, classifier: Run, tmp_path: pathlib.Path) -> None:
    said = complaint(guided.workdir, *FEW, f"--classifier={guided.workdir}")
    assert "is no classifier's run; train one by configs/adm_classifier.py" in said
    assert "--classifier: " in (said := complaint(guided.workdir, *FEW, f"--classifier={tmp_path}"))
    assert "holds no run" in said
    shutil.copy(classifier.workdir / "config.json", tmp_path)
    assert "--classifier: no usable checkpoint" in complaint(guided.workdir, *FEW, f"--classifier={tmp_path}")


def test_flags_of_a_classifier_are_checked(guided: Run, classifier: Run) -> None:
    said = complaint(guided.workdir, *FEW, "--classifier_scale=2")
    assert said == "--classifier_scale: needs a classifier; name its run by --classifier"
    for scale in ("-1", "nan", "inf"):
        flags = (f"--classifier={classifier.workdir}", f"--classifier_scale={scale}")
        assert "--classifier_scale" in complaint(guided.workdir, *FEW, *flags)


def test_a_classifier_itself_draws_no_pictures(classifier: Run) -> None:
    said = complaint(classifier.workdir, *FEW)
    assert said == f"--workdir: {str(classifier.workdir)!r} is the run of a classifier, which draws no pictures"


@pytest.mark.parametrize("channels", [2, 4])
def test_latents_are_written_as_float32_arrays_and_as_nothing_else(channels: int, tmp_path: pathlib.Path) -> None:
    run = saved_run(dit_rf, tmp_path / "run", TRANSFORMER | {"data.channels": channels})
    out = tmp_path / "x.npz"
    inside.sample(run.workdir, *FEW, "--labels=0-1", f"--out={out}")
    with np.load(out) as archive:
        latents, labels = archive["images"], archive["labels"]
    assert latents.shape == (4, 8, 8, channels) and latents.dtype == np.float32 and labels.tolist() == [0, 0, 1, 1]
    assert np.max(np.abs(latents)) > 1 and len(np.unique(latents)) == latents.size  # neither cut nor rounded
    for suffix in (".png", ".gif"):
        said = complaint(run.workdir, *FEW, f"--out={tmp_path / 'x'}{suffix}")
        assert said == f"--out: {channels} channels are no picture; write them to a file that ends in .npz"
