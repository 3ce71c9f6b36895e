"""The table of what a network says of each class: made by the command, trained on, and found again in a checkpoint."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.data import load
from archirf_jax.data.dataset import Dataset
from archirf_jax.errors import UserError
from archirf_jax.models.conditions import read_table
from archirf_jax.tasks.building import resolve
from configs import adm_classifier, dit_rf, mmdit_rf
from tests import running
from tests.commands import drawing, saved

# Two tokens of three numbers; what a batch looks like is written down beside the file.
FEATURES = """
import pathlib
import numpy as np

def features(images):
    with open(pathlib.Path(__file__).with_suffix(".log"), "a") as log:
        print(*images.shape, images.dtype, images.min() >= -1, images.max() <= 1, file=log)
    rows = images.reshape(len(images), 2, 4, -1)
    return np.stack([rows.mean((2, 3)), rows.std((2, 3)), rows[:, :, 2, 1] ** 2], axis=-1)
"""


@pytest.fixture(scope="module")
def digits(data_dir: pathlib.Path) -> Dataset:
    return load("digits", dir=str(data_dir), image_size=8, channels=1)


def prepare(*arguments: str) -> None:
    running.call("prepare_data", *arguments)


def refused(*arguments: str) -> running.Refusal:
    return running.refused("prepare_data", *arguments)


def script(folder: pathlib.Path, text: str = FEATURES) -> pathlib.Path:
    path = folder / "embed.py"
    path.write_text(text)
    return path


def function(body: str) -> str:
    return f"import numpy as np\n\ndef features(images):\n    n = len(images)\n    {body}\n"


def arguments(data_dir: pathlib.Path, features: pathlib.Path, out: pathlib.Path) -> list[str]:
    return ["--name=digits", f"--dir={data_dir}", f"--features={features}", f"--class_embeddings={out}"]


def of_file(data_dir: pathlib.Path, features: pathlib.Path, out: pathlib.Path, *more: str) -> list[str]:
    return [*arguments(data_dir, features, out), "--image_size=8", "--channels=1", *more]


def means(digits: Dataset, each: np.ndarray) -> np.ndarray:
    """(classes, ...) of a value (N, ...) of each image."""
    assert digits.arrays is not None
    return np.stack([each[digits.arrays["label"] == label].mean(axis=0) for label in range(10)])


def pixels(digits: Dataset) -> np.ndarray:
    assert digits.arrays is not None
    return (digits.arrays["image"].astype(np.float64) - 127.5) / 127.5


# Of 1,797 images: the last batch is partly filled, full, the only one.
@pytest.mark.parametrize("batch_size", [128, 599, 5000])
def test_the_table_is_the_mean_of_the_features_of_each_class(
    batch_size: int, digits: Dataset, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "new" / "table.npz"
    prepare(*of_file(data_dir, script(tmp_path), out, f"--batch_size={batch_size}"))
    table = read_table(str(out))
    halves = pixels(digits).reshape(-1, 2, 32)
    expected = np.stack([halves.mean(-1), halves.std(-1), halves[:, :, 17] ** 2], axis=-1)
    np.testing.assert_allclose(table, means(digits, expected), rtol=1e-5, atol=1e-6)
    assert table.shape == (10, 2, 3) and table.dtype == np.float32
    size = min(batch_size, 1797)  # every batch is of one size: one program for all
    lines = (tmp_path / "embed.log").read_text().splitlines()
    assert lines == [f"{size} 8 8 1 float32 True True"] * -(-1797 // size)
    assert [path.name for path in out.parent.iterdir()] == ["table.npz"]


def test_numbers_of_a_map_are_tokens_row_by_row_and_half_precision_is_summed_in_full(
    digits: Dataset, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    text = function("return images.reshape(n, 4, 2, 4, 2, 1).mean((2, 4)).astype(np.float16)")
    prepare(*of_file(data_dir, script(tmp_path, text), tmp_path / "table.npz"))
    maps = pixels(digits).reshape(-1, 4, 2, 4, 2, 1).mean((2, 4)).astype(np.float32).astype(np.float16)
    expected = means(digits, maps.astype(np.float64)).reshape(10, 16, 1)
    np.testing.assert_allclose(read_table(str(tmp_path / "table.npz")), expected, atol=1e-7)


def test_images_come_in_the_size_channels_and_split_that_are_asked_for(
    digits: Dataset, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "beside.py").write_text("SHAPE = (-1, 1, 3)")  # as a script, a file imports what lies beside it
    text = "import beside\n" + function("return images[:, 5, 5].reshape(beside.SHAPE)")
    out, more = tmp_path / "table.npz", ("--image_size=16", "--split=train[:900]")
    prepare(*arguments(data_dir, script(tmp_path, text), out), *more)
    enlarged = load("digits", dir=str(data_dir), split="train[:900]", image_size=16, channels=3)
    expected = means(enlarged, pixels(enlarged)[:, 5, 5])[:, None]
    np.testing.assert_allclose(read_table(str(out)), expected, rtol=1e-5)


FLAT = "return images.reshape(n, 1, -1)"
# What a file may do wrong, and a word of the answer.
FAULTS = {
    "a matrix": (function("return images.reshape(n, -1)"), "(128, 64)"),
    "too many axes": (function("return images[..., None]"), "(128, 8, 8, 1, 1)"),
    "another number of images": (function("return images[:5, 0]"), "(5, 8, 1)"),
    "no features at all": (function("return images[:, :0, 0]"), "(128, 0, 1)"),
    "nothing": (function("return None"), ""),
    "words": (function("return ['a'] * n"), "list"),
    "a ragged list": (function("return [[[0.0] * i] for i in range(n)]"), "list"),
    "nan": (function("return np.where(images > 0.99, np.nan, images)[:, 0]"), "nan"),
    "infinity": (function("return np.where(images > 0.99, np.inf, images)[:, 0]"), "infinity"),
    "two shapes": (
        "seen = []\n" + function("seen.append(n)\n    return images[:, :len(seen), 0]"),
        "(2, 1)",
    ),
    "no such function": ("def feature(images):\n    return images\n", "features(images)"),
    "a number in its place": ("features = 3\n", "features(images)"),
    "a failure": (function("x = images[0]\n    raise ValueError('no\\nsuch thing')"), "line 6"),
    "a failure while it is read": ("\n\nimport no_such_package\n", "line 3"),
    "no Python": ("def features(images:\n", "SyntaxError"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_the_file_is_told_in_one_line_and_what_was_there_stays(
    case: str, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    text, word = FAULTS[case]
    out = tmp_path / "out" / "table.npz"
    out.parent.mkdir()
    out.write_text("mine")
    few = "--split=train[:256]"  # two batches
    refusal = refused(*of_file(data_dir, script(tmp_path, text), out, few))
    assert refusal.flag == "--features" and word in refusal.line, refusal
    assert [path.name for path in out.parent.iterdir()] == ["table.npz"] and out.read_text() == "mine"


def test_the_first_image_with_nan_is_named(digits: Dataset, data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    text = "count = [0]\n" + function(
        "count[0] += n\n    numbers = np.arange(count[0] - n, count[0])\n"
        "    return np.where(numbers < 700, 0, np.nan).reshape(n, 1, 1)"
    )
    refusal = refused(*of_file(data_dir, script(tmp_path, text), tmp_path / "x.npz"))
    assert refusal.flag == "--features" and digits.source.describe(700) in refusal.line


# Arguments -> the flag that the answer names.
BAD = {
    "--class_embeddings=x.npy": "--class_embeddings",
    "--class_embeddings=FOLDER.npz": "--class_embeddings",
    "--class_embeddings=/proc/x.npz": "--class_embeddings",
    "--class_embeddings=README.md/x.npz": "--class_embeddings",
    "--features=absent.py": "--features",
    "--features=README.md": "--features",
    "--features=docs": "--features",
    "--batch_size=0": "--batch_size",
    "--split=tset": "--split",
    "--name=digitz": "--name",
    "--split=train[:5]": "--split",
    "--channels=2": "--channels",
}


@pytest.mark.parametrize("argument", BAD)
def test_a_wrong_argument_is_answered_with_its_flag(
    argument: str, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "FOLDER.npz").mkdir()
    out, wrong = tmp_path / "x.npz", argument.replace("FOLDER", str(tmp_path / "FOLDER"))
    refusal = refused(*of_file(data_dir, script(tmp_path, function(FLAT)), out), wrong)
    assert refusal.flag == BAD[argument], refusal
    assert not out.exists() and not list(tmp_path.glob("*.part"))


def test_flags_belong_together(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert refused(*arguments(data_dir, script(tmp_path), tmp_path / "x.npz")).flag == "--image_size"
    start = ["--name=digits", f"--dir={data_dir}"]
    for flag in ("--features=x.py", "--image_size=8", "--channels=1", "--batch_size=4", "--split=test"):
        assert refused(*start, flag).flag == flag.partition("=")[0]
    assert refused(*start, "--class_embeddings=x.npz").flag == "--features"
    prepare(*start)  # what is prepared stays as it is


@pytest.fixture(scope="module")
def classifier(data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> saved.Saved:
    return saved.save(adm_classifier, tmp_path_factory.mktemp("run"), saved.TINY_ADM | {"data.dir": str(data_dir)})


def test_the_table_of_a_classifier_is_the_mean_of_its_last_maps(
    classifier: saved.Saved, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (workdir, task, params), split, out = classifier, "train[:300]", tmp_path / "table.npz"
    prepare(*arguments(data_dir, workdir, out), "--batch_size=100", f"--split={split}")
    digits = load("digits", dir=str(data_dir), split=split, image_size=8, channels=1)
    maps = jax.jit(task.features)(params, pixels(digits).astype(np.float32))
    expected = means(digits, np.asarray(maps, np.float64)).reshape(10, 64, 32)
    np.testing.assert_allclose(read_table(str(out)), expected, atol=1e-5)
    assert np.std(expected, axis=0).max() > 0.01  # classes are told apart


def test_a_classifier_says_itself_what_images_and_classes_it_takes(
    classifier: saved.Saved, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir, out = classifier[0], tmp_path / "x.npz"
    for flag in ("--image_size=16", "--channels=3"):
        assert refused(*arguments(data_dir, workdir, out), flag).flag == flag.partition("=")[0]
    eleven = saved.TINY_ADM | {"data.num_classes": 11}
    saved.save(adm_classifier, tmp_path / "eleven", eleven)
    assert refused(*arguments(data_dir, tmp_path / "eleven", out)).flag == "--features"


def test_runs_of_something_else_and_without_a_checkpoint_are_refused(
    classifier: saved.Saved, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copy(classifier.workdir / "config.json", tmp_path)
    saved.save(dit_rf, tmp_path / "diffusion", saved.TINY_DIT)
    for workdir in (tmp_path, tmp_path / "diffusion"):
        assert refused(*arguments(data_dir, workdir, tmp_path / "x.npz")).flag == "--features"


def put_table(path: pathlib.Path, *shape: int, name: str = "table") -> pathlib.Path:
    np.savez(path, **{name: np.random.default_rng(0).normal(size=shape).astype(np.float32)})
    return path


def context(path: pathlib.Path | str, **fields: Any) -> Any:
    """A configuration whose context is a table."""
    config = mmdit_rf.get_config()
    config.data.num_classes = 10
    config.model.update(dict(context="class_table", class_embeddings=str(path), class_tokens=None) | fields)
    return config


def test_tokens_and_width_are_the_tables_where_nobody_says_them(tmp_path: pathlib.Path) -> None:
    config = context(put_table(tmp_path / "t.npz", 10, 4, 6))
    resolve(config, 10)
    assert (config.model.class_tokens, config.model.class_width) == (4, 6)
    untouched = context("absent.npz", context="class_tokens", class_tokens=2)
    resolve(untouched, 10)
    assert untouched.model.class_width is None


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((9, 4, 6), {}),
        ((11, 4, 6), {}),
        ((10, 4, 6), dict(class_tokens=2)),
        ((10, 4, 6), dict(class_width=7)),
        ((10, 24), {}),
    ],
)
def test_a_table_of_another_shape_is_refused(
    shape: tuple[int, ...], fields: dict[str, int], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError) as caught:
        resolve(context(put_table(tmp_path / "t.npz", *shape), **fields), 10)
    assert caught.value.field == "model.class_embeddings" and str(shape) in str(caught.value)


def test_a_file_without_a_table_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.npz").write_text("words")
    np.save(tmp_path / "array.npy", np.zeros((10, 4, 6)))
    other = put_table(tmp_path / "other.npz", 10, 4, 6, name="tables")
    for path in (tmp_path / "absent.npz", tmp_path / "text.npz", tmp_path / "array.npy", other, tmp_path, ""):
        with pytest.raises(UserError) as caught:
            resolve(context(path), 10)
        assert caught.value.field == "model.class_embeddings"


def training(workdir: pathlib.Path, data_dir: pathlib.Path, table: pathlib.Path) -> list[str]:
    """Two steps of configs/mmdit_rf.py."""
    few = ("--config.steps=2", "--config.batch_size=16", "--config.model.depth=1", "--config.model.depth_single=0")
    few += ("--config.model.registers=0", "--config.model.qk_norm=None")
    few += ("--config.sample.classes=2", "--config.sample.per_class=1", "--config.schedule.name=constant")
    choice = ("--config.model.context=class_table", f"--config.model.class_embeddings={table}")
    _, *small = running.small(workdir, data_dir, *few, *choice, "--config.model.class_tokens=None")
    return [f"--config={running.REPOSITORY / 'configs' / 'mmdit_rf.py'}", *small]


@pytest.mark.slow
def test_a_run_keeps_its_table_which_training_does_not_change_when_the_file_is_gone(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path, workdir = tmp_path / "table.npz", tmp_path / "run"
    prepare(*of_file(data_dir, script(tmp_path), path))
    table = read_table(str(path))
    assert running.call("main", *training(workdir, data_dir, path)) == 0
    path.unlink()
    kept = {name: array for name, array in running.final_arrays(workdir, 2).items() if "frozen_table" in name}
    assert len(kept) == 2 and all("opt" not in name for name in kept)  # parameters and their average
    for array in kept.values():
        np.testing.assert_array_equal(array, table)
    images, labels = drawing.arrays(workdir, tmp_path, *drawing.PLAIN, "--labels=0-3", "--per_class=2")
    assert images.shape == (8, 8, 8, 1) and labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_table_of_other_classes_is_refused_before_a_training_begins(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    wrong = training(tmp_path / "run", data_dir, put_table(tmp_path / "t.npz", 9, 2, 3))
    assert running.refused("main", *wrong).flag == "config.model.class_embeddings"
    assert not (tmp_path / "run").exists()
