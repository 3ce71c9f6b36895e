"""The table of what a network says of each class: made by the command, trained on, and found again in a checkpoint."""

from __future__ import annotations

import pathlib
import types
from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.data.pipeline import Dataset, load
from archirf_jax.errors import UserError
from archirf_jax.models.conditions import read_table
from archirf_jax.tasks.building import resolve_class_embeddings
from configs import adm_classifier, mmdit_rf
from tests import running
from tests.commands import inside, saved
from tests.commands.alone import Command

PREPARE = Command("archirf_jax.prepare_data")
LARGE = types.SimpleNamespace(
    name="digits", label_key="label", image_size=16, channels=3, resident_mib=100, skip_unreadable=False
)
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
    fields = dict(name="digits", dir=str(data_dir), split="train", label_key="label", image_size=8, channels=1)
    return load(types.SimpleNamespace(resident_mib=100, skip_unreadable=False, **fields))


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
    return np.stack([each[digits.labels == label].mean(axis=0) for label in range(10)])


def pixels(digits: Dataset) -> np.ndarray:
    assert digits.images is not None
    return (digits.images.astype(np.float64) - 127.5) / 127.5


@pytest.mark.parametrize("batch_size", [128, 599, 1000, 5000])  # 1,797 images: the last batch is partly filled
def test_the_table_is_the_mean_of_the_features_of_each_class(
    batch_size: int, digits: Dataset, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "new" / "table.npz"
    PREPARE(*of_file(data_dir, script(tmp_path), out, f"--batch_size={batch_size}"))
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
    PREPARE(*of_file(data_dir, script(tmp_path, text), tmp_path / "table.npz"))
    maps = pixels(digits).reshape(-1, 4, 2, 4, 2, 1).mean((2, 4)).astype(np.float32).astype(np.float16)
    expected = means(digits, maps.astype(np.float64)).reshape(10, 16, 1)
    np.testing.assert_allclose(read_table(str(tmp_path / "table.npz")), expected, atol=1e-7)


def test_images_come_in_the_size_channels_and_split_that_are_asked_for(
    digits: Dataset, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "beside.py").write_text("SHAPE = (-1, 1, 3)")  # as a script, a file imports what lies beside it
    text = "import beside\n" + function("return images[:, 5, 5].reshape(beside.SHAPE)")
    out, more = tmp_path / "table.npz", ("--image_size=16", "--split=train[:900]")
    PREPARE(*arguments(data_dir, script(tmp_path, text), out), *more)
    enlarged = load(types.SimpleNamespace(**vars(LARGE) | dict(dir=str(data_dir), split="train[:900]")))
    expected = means(enlarged, pixels(enlarged)[:, 5, 5])[:, None]
    np.testing.assert_allclose(read_table(str(out)), expected, rtol=1e-5)


FLAT = "return images.reshape(n, 1, -1)"
# What a file may do wrong, and what is said of it.
FAULTS = {
    "a matrix": (function("return images.reshape(n, -1)"), ["(128, 64) for 128 images", "(128, tokens, dim)"]),
    "too many axes": (function("return images[..., None]"), ["(128, 8, 8, 1, 1) for 128 images"]),
    "another number of images": (function("return images[:5, 0]"), ["(5, 8, 1) for 128 images"]),
    "no features at all": (function("return images[:, :0, 0]"), ["(128, 0, 1)"]),
    "nothing": (function("return None"), ["() for 128 images"]),
    "words": (function("return ['a'] * n"), ["gave list, which is no array of numbers"]),
    "a ragged list": (function("return [[[0.0] * i] for i in range(n)]"), ["gave list, which is no array of numbers"]),
    "nan": (function("return np.where(images > 0.99, np.nan, images)[:, 0]"), ["gave nan or infinity for "]),
    "infinity": (function("return np.where(images > 0.99, np.inf, images)[:, 0]"), ["gave nan or infinity for "]),
    "two shapes": (
        "seen = []\n" + function("seen.append(n)\n    return images[:, :len(seen), 0]"),
        ["(1, 1) for one image and (2, 1) for another"],
    ),
    "no such function": ("def feature(images):\n    return images\n", ["defines no function features(images)"]),
    "a number in its place": ("features = 3\n", ["defines no function features(images)"]),
    "a failure": (
        function("x = images[0]\n    raise ValueError('no\\nsuch thing')"),
        ["fails in line 6: ValueError: no such thing"],
    ),
    "a failure while it is read": ("\n\nimport no_such_package\n", ["fails in line 3: ModuleNotFoundError: "]),
    "no Python": ("def features(images:\n", ["fails", "SyntaxError"]),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_the_file_is_told_in_one_line_and_what_was_there_stays(
    case: str, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    text, expected = FAULTS[case]
    out = tmp_path / "out" / "table.npz"
    out.parent.mkdir()
    out.write_text("mine")
    said = PREPARE.complaint(*of_file(data_dir, script(tmp_path, text), out))
    assert said.startswith("--features: ") and all(word in said for word in expected), said
    assert [path.name for path in out.parent.iterdir()] == ["table.npz"] and out.read_text() == "mine"


def test_the_first_image_with_nan_is_named(digits: Dataset, data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    text = "count = [0]\n" + function(
        "count[0] += n\n    numbers = np.arange(count[0] - n, count[0])\n"
        "    return np.where(numbers < 700, 0, np.nan).reshape(n, 1, 1)"
    )
    said = PREPARE.complaint(*of_file(data_dir, script(tmp_path, text), tmp_path / "x.npz"))
    assert f"gave nan or infinity for {digits.source.describe(700)}" in said


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "another suffix": (["--class_embeddings=x.npy"], ["--class_embeddings: 'x.npy' must end in .npz"]),
    "a folder in its place": (["--class_embeddings=FOLDER.npz"], ["--class_embeddings: ", "it is a directory"]),
    "an unwritable place": (
        ["--class_embeddings=/proc/x.npz"],
        ["--class_embeddings: '/proc/x.npz' cannot be written"],
    ),
    "a file as a folder": (["--class_embeddings=README.md/x.npz"], ["--class_embeddings: ", "cannot be written"]),
    "no such file": (["--features=absent.py"], ["'absent.py' is neither the run of a classifier nor a Python file"]),
    "no Python file": (["--features=README.md"], ["'README.md' is neither"]),
    "no run": (["--features=docs"], ["--features: 'docs' holds no run"]),
    "no images": (["--batch_size=0"], ["--batch_size"]),
    "an unknown split": (["--split=tset"], ["--split: ", "tset"]),
    "an unknown set": (["--name=digitz"], ["--name: ", "digitz"]),
    "no class of some": (
        ["--split=train[:5]"],
        ["--name: the split has no images of class ", "every class needs some"],
    ),
    "two channels": (["--channels=2"], ["--channels: 2 must be 1 (grey) or 3 (RGB)"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_answered_in_one_line(case: str, data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    wrong, expected = WRONG[case]
    (tmp_path / "FOLDER.npz").mkdir()
    wrong = [argument.replace("FOLDER", str(tmp_path / "FOLDER")) for argument in wrong]
    out = tmp_path / "x.npz"
    said = PREPARE.complaint(*of_file(data_dir, script(tmp_path, function(FLAT)), out), *wrong)
    assert all(word in said for word in expected), said
    assert not out.exists() and not list(tmp_path.glob("*.part"))


def test_a_python_file_needs_the_size_of_its_images(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    said = PREPARE.complaint(*arguments(data_dir, script(tmp_path), tmp_path / "x.npz"))
    assert said.startswith("--image_size: is missing")


def test_flags_of_a_table_without_a_table_are_answered_in_one_line(data_dir: pathlib.Path) -> None:
    start = ["--name=digits", f"--dir={data_dir}"]
    for flag in ("--features=x.py", "--image_size=8", "--channels=1", "--batch_size=4", "--split=test"):
        said = PREPARE.complaint(*start, flag)
        assert said.startswith(f"{flag.partition('=')[0]}: belongs to --class_embeddings")
    assert PREPARE.complaint(*start, "--class_embeddings=x.npz").startswith("--features: is missing; give the run")
    PREPARE(*start)  # what is prepared stays as it is


@pytest.fixture(scope="module")
def classifier(data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Any, Any]:
    """A classifier's run, its task and its average."""
    workdir = tmp_path_factory.mktemp("classifier")
    config = adm_classifier.get_config()
    return workdir, *saved.save(config, workdir, saved.TINY_ADM | {"data.dir": str(data_dir)})


def test_the_table_of_a_classifier_is_the_mean_of_its_last_maps(
    classifier: tuple[pathlib.Path, Any, Any], digits: Dataset, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir, task, params = classifier
    out = tmp_path / "table.npz"
    PREPARE(*arguments(data_dir, workdir, out), "--batch_size=500")
    maps = jax.jit(task.features)(params, pixels(digits).astype(np.float32))
    expected = means(digits, np.asarray(maps, np.float64)).reshape(10, 16, 32)
    np.testing.assert_allclose(read_table(str(out)), expected, atol=1e-5)
    assert np.std(expected, axis=0).max() > 0.01  # classes are told apart


def test_a_classifier_says_itself_what_images_and_classes_it_takes(
    classifier: tuple[pathlib.Path, Any, Any], data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir, out = classifier[0], tmp_path / "x.npz"
    for flag in ("--image_size=16", "--channels=3"):
        said = PREPARE.complaint(*arguments(data_dir, workdir, out), flag)
        assert said.startswith(f"{flag.partition('=')[0]}: ") and "leave it out" in said
    eleven = saved.TINY_ADM | {"data.num_classes": 11}
    saved.save(adm_classifier.get_config(), tmp_path / "eleven", eleven)
    said = PREPARE.complaint(*arguments(data_dir, tmp_path / "eleven", out))
    assert said == "--features: a classifier of 11 classes, but 'digits' has 10"


def test_runs_of_something_else_and_without_a_checkpoint_are_refused(
    classifier: tuple[pathlib.Path, Any, Any], data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    text = (classifier[0] / "config.json").read_text()
    (tmp_path / "config.json").write_text(text)
    assert "--features: no usable checkpoint" in PREPARE.complaint(*arguments(data_dir, tmp_path, tmp_path / "x.npz"))
    (tmp_path / "config.json").write_text(text.replace('"task": "classifier"', '"task": "diffusion"'))
    said = PREPARE.complaint(*arguments(data_dir, tmp_path, tmp_path / "x.npz"))
    assert "is the run of a diffusion; give one of a classifier" in said and "configs/adm_classifier.py" in said


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
    resolve_class_embeddings(config)
    assert (config.model.class_tokens, config.model.class_width) == (4, 6)
    untouched = context("absent.npz", context="class_tokens", class_tokens=2)
    resolve_class_embeddings(untouched)
    assert untouched.model.class_width == 0


@pytest.mark.parametrize(
    ("shape", "fields", "said"),
    [
        ((9, 4, 6), {}, r"has the shape \(9, 4, 6\); .* want .* = \(10, 4, 6\)"),
        ((11, 4, 6), {}, r"\(11, 4, 6\); .* = \(10, 4, 6\)"),
        ((10, 4, 6), dict(class_tokens=2), r"\(10, 4, 6\); .* = \(10, 2, 6\)"),
        ((10, 4, 6), dict(class_width=7), r"\(10, 4, 6\); .* = \(10, 4, 7\)"),
        ((10, 24), {}, r"has the shape \(10, 24\); it must be \(classes, tokens, width\)"),
    ],
)
def test_a_table_of_another_shape_is_refused(
    shape: tuple[int, ...], fields: dict[str, int], said: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError, match=f"^config.model.class_embeddings: .*{said}"):
        resolve_class_embeddings(context(put_table(tmp_path / "t.npz", *shape), **fields))


def test_a_file_without_a_table_is_refused_with_the_command_that_makes_one(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.npz").write_text("words")
    np.save(tmp_path / "array.npy", np.zeros((10, 4, 6)))
    other = put_table(tmp_path / "other.npz", 10, 4, 6, name="tables")
    for path in (tmp_path / "absent.npz", tmp_path / "text.npz", tmp_path / "array.npy", other, tmp_path, ""):
        with pytest.raises(UserError, match="no .npz file with an array 'table'; make one by .*--class_embeddings"):
            resolve_class_embeddings(context(path))


def train(workdir: pathlib.Path, data_dir: pathlib.Path, table: pathlib.Path) -> Any:
    """Two steps of configs/mmdit_rf.py."""
    few = ("--config.steps=2", "--config.batch_size=16", "--config.model.depth=1", "--config.model.depth_single=0")
    few += ("--config.sample.classes=2", "--config.sample.per_class=1", "--config.schedule.name=constant")
    choice = ("--config.model.context=class_table", f"--config.model.class_embeddings={table}")
    command = running.arguments(workdir, data_dir, [*few, *choice, "--config.model.class_tokens=None"])
    command = [argument.replace("configs/dit_rf.py", "configs/mmdit_rf.py") for argument in command]
    return running.run(command, env=running.environment(XLA_FLAGS="--xla_backend_optimization_level=0"))


def test_a_run_keeps_its_table_which_training_does_not_change_when_the_file_is_gone(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path, workdir = tmp_path / "table.npz", tmp_path / "run"
    PREPARE(*of_file(data_dir, script(tmp_path), path))
    table = read_table(str(path))
    done = train(workdir, data_dir, path)
    assert done.returncode == 0, done.stderr
    path.unlink()
    kept = {name: array for name, array in running.final_arrays(workdir, 2).items() if "frozen_table" in name}
    assert len(kept) == 2 and all("opt" not in name for name in kept)  # parameters and their average
    for array in kept.values():
        np.testing.assert_array_equal(array, table)
    images, labels = inside.arrays(workdir, tmp_path, *inside.PLAIN, "--labels=0-3", "--per_class=2")
    assert images.shape == (8, 8, 8, 1) and labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_table_of_other_classes_ends_a_training_with_one_line_before_it_begins(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    done = train(tmp_path / "run", data_dir, put_table(tmp_path / "t.npz", 9, 2, 3))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "config.model.class_embeddings: " in done.stderr and "(9, 2, 3)" in done.stderr
    assert not (tmp_path / "run").exists()
