"""A folder or a prepared set is opened as it lies there; anything else is refused in one line that says what to do."""

from __future__ import annotations

import io
import json
import pathlib
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from archirf_jax.data.preparation import prepare
from archirf_jax.data.sources import FolderSource, load_builder, open_source
from archirf_jax.errors import UserError


class WordsWithoutPictures(tfds.core.GeneratorBasedBuilder):
    """A set that no image model can be trained on."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"word": tfds.features.Text()}))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
        yield 0, {"word": "one"}


class PicturesWithSeveralLabels(tfds.core.GeneratorBasedBuilder):
    """One picture with a class, a list of classes, and a number."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        colours = tfds.features.ClassLabel(names=["red", "green", "blue"])
        features = {
            "image": tfds.features.Image(),
            "colour": colours,
            "all": tfds.features.Sequence(colours),
            "n": tfds.features.Scalar(np.int32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield 0, {"image": io.BytesIO(png()), "colour": 2, "all": [0, 2], "n": 1}


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, "PNG")
    return file.getvalue()


def tree(root: pathlib.Path, *files: str) -> pathlib.Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png())
    return root


def tfds_source(directory: pathlib.Path, name: str = "digits", split: str = "train", label_key: str = "label") -> Any:
    return open_source(name, directory=str(directory), split=split, label_key=label_key)


def complaint(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as refused:
        call()
    message = str(refused.value)
    assert "\n" not in message and len(message) < 700
    return message


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: pathlib.Path) -> None:
    source = open_source(
        f"folder:{tree(tmp_path, 'dog/2.png', 'cat/9.png', 'dog/1.png', 'Zebra/1.png')}",
        directory="nowhere",
        split="train",
        label_key="label",
    )
    assert source.class_names == ["Zebra", "cat", "dog"] and not source.checked
    found = [(pathlib.Path(str(source[i][0])).name, source[i][1]) for i in range(len(source))]
    assert found == [("1.png", 0), ("9.png", 1), ("1.png", 2), ("2.png", 2)]
    assert source.describe(3) == str(tmp_path / "dog/2.png")


def test_a_folder_without_subfolders_is_one_class_of_its_own_name(tmp_path: pathlib.Path) -> None:
    source = FolderSource(tree(tmp_path / "shells", "b.png", "a.png"))
    assert source.class_names == ["shells"] and [source[i][1] for i in range(2)] == [0, 0]


def test_the_working_directory_has_a_name_too(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree(tmp_path / "shells", "a.png"))
    assert FolderSource(pathlib.Path(".")).class_names == ["shells"]


def test_hidden_files_and_folders_are_ignored(tmp_path: pathlib.Path) -> None:
    source = FolderSource(tree(tmp_path, "a/1.png", "a/.1.png.swp", "a/.cache/2.png", ".git/3.png", ".DS_Store"))
    assert source.class_names == ["a"] and len(source) == 1


def test_nested_files_belong_to_the_outermost_folder(tmp_path: pathlib.Path) -> None:
    source = FolderSource(tree(tmp_path, "a/1.png", "b/deep/er/2.png", "b/3.png"))
    assert source.class_names == ["a", "b"] and [source[i][1] for i in range(3)] == [0, 1, 1]


def test_files_beside_class_folders_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    message = complaint(lambda: FolderSource(tree(tmp_path, "a/1.png", "stray.png")))
    assert "'stray.png'" in message and "move" in message


def test_a_class_without_pictures_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    (tree(tmp_path, "a/1.png") / "hollow" / "inner").mkdir(parents=True)
    message = complaint(lambda: FolderSource(tmp_path))
    assert "class hollow;" in message


def test_an_empty_folder_is_refused(tmp_path: pathlib.Path) -> None:
    assert "no images" in complaint(lambda: FolderSource(tmp_path))


def test_a_missing_folder_is_refused(tmp_path: pathlib.Path) -> None:
    missing = f"folder:{tmp_path / 'absent'}"
    assert "does not exist" in complaint(lambda: tfds_source(tmp_path, missing))


def test_a_prepared_set_gives_encoded_images_and_labels(data_dir: pathlib.Path) -> None:
    source = tfds_source(data_dir)
    assert len(source) == 1797 and source.class_names == [str(digit) for digit in range(10)] and source.checked
    encoded, label = source[1796]
    assert Image.open(io.BytesIO(encoded)).size == (8, 8) and type(label) is int and 0 <= label < 10


def test_without_a_label_key_all_images_are_one_class(data_dir: pathlib.Path) -> None:
    source = tfds_source(data_dir, label_key="")
    assert len(source.class_names) == 1 and {source[i][1] for i in range(50)} == {0}


def test_a_version_may_be_named(data_dir: pathlib.Path) -> None:
    assert len(tfds_source(data_dir, "digits:1.0.0")) == 1797
    assert "only: 1.0.0" in complaint(lambda: tfds_source(data_dir, "digits:9.9.9"))


@pytest.mark.parametrize("wrong, right", [("digitz", "digits"), ("cifar01", "cifar10"), ("openmojis", "openmoji")])
def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: pathlib.Path, wrong: str, right: str) -> None:
    message = complaint(lambda: tfds_source(tmp_path, wrong))
    assert f"{wrong!r}" in message and f"did you mean {right!r}?" in message


@pytest.mark.parametrize("name", ["", "a b", "../up", "cifar10/no_such_variant"])
def test_a_name_that_tfds_cannot_read_is_refused_in_one_line(tmp_path: pathlib.Path, name: str) -> None:
    assert f"data.name: {name!r}" in complaint(lambda: tfds_source(tmp_path, name))


@pytest.mark.parametrize("name", ["cifar10", "digits", "imagenet_resized/64x64"])
def test_an_unprepared_set_names_its_command_and_touches_no_network(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def offline(*args: Any) -> None:
        raise AssertionError(f"network: {args}")

    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    message = complaint(lambda: tfds_source(tmp_path, name))
    assert f"python -m archirf_jax.prepare_data --name={name} --dir={tmp_path}" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train[:80%]", range(1438)),
        ("train[80%:]", range(1438, 1797)),
        ("train[10:13]", range(10, 13)),
        ("train[:2]+train[-1:]", (0, 1, 1796)),
    ],
)
def test_a_part_of_a_split_holds_those_examples_and_no_others(
    data_dir: pathlib.Path, split: str, numbers: Sequence[int]
) -> None:
    whole, part = tfds_source(data_dir), tfds_source(data_dir, split=split)
    assert len(part) == len(numbers)
    for place in (0, len(numbers) // 2, -1):
        assert part[range(len(part))[place]] == whole[numbers[place]]


@pytest.mark.parametrize(
    "split",
    ["valid", "valid[:10%]", "train[", "train[a:b]", "train[5]", "train[:120%]", "train[5:5]", "train[9:2]", ""],
)
def test_an_unknown_or_empty_split_is_answered_with_those_there_are(data_dir: pathlib.Path, split: str) -> None:
    message = complaint(lambda: tfds_source(data_dir, split=split))
    assert (
        "data.split" in message and f"{split!r}" in message and "it has train and parts such as train[:80%]" in message
    )


def test_a_part_beyond_the_set_is_told_its_size(data_dir: pathlib.Path) -> None:
    assert "1797 examples" in complaint(lambda: tfds_source(data_dir, split="train[:5000]"))


def test_a_folder_has_no_other_split_than_train(tmp_path: pathlib.Path) -> None:
    tree(tmp_path, "cat/1.png")
    message = complaint(lambda: open_source(f"folder:{tmp_path}", directory="", split="test", label_key=""))
    assert "data.split" in message and "'test'" in message and "train" in message


def test_an_unknown_label_is_answered_with_the_features_there_are(data_dir: pathlib.Path) -> None:
    message = complaint(lambda: tfds_source(data_dir, label_key="clas"))
    assert "data.label_key" in message and "'clas'" in message and "it has image, label" in message
    assert "label_key=''" in message


def test_any_class_feature_may_be_the_label(tmp_path: pathlib.Path) -> None:
    prepare("pictures_with_several_labels", str(tmp_path))
    source = tfds_source(tmp_path, "pictures_with_several_labels", label_key="colour")
    assert source.class_names == ["red", "green", "blue"] and source[0] == (png(), 2)


@pytest.mark.parametrize("key", ["all", "n", "image"])
def test_a_feature_that_is_no_class_is_refused_as_label(tmp_path: pathlib.Path, key: str) -> None:
    prepare("pictures_with_several_labels", str(tmp_path))
    message = complaint(lambda: tfds_source(tmp_path, "pictures_with_several_labels", label_key=key))
    assert f"{key!r}" in message and "no class label" in message


def test_a_set_without_images_is_refused(tmp_path: pathlib.Path) -> None:
    prepare("words_without_pictures", str(tmp_path))
    message = complaint(lambda: tfds_source(tmp_path, "words_without_pictures", label_key=""))
    assert "'image'" in message and "it has word" in message


def test_a_set_prepared_in_another_format_is_refused_with_a_way_out(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(data_dir / "digits", tmp_path / "digits")
    info = tmp_path / "digits/1.0.0/dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    for call in (lambda: tfds_source(tmp_path), lambda: prepare("digits", str(tmp_path))):
        message = complaint(call)
        assert "not in array_record" in message and "prepare_data --name=digits" in message


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:999])])
def test_a_damaged_set_is_refused_with_a_way_out(
    data_dir: pathlib.Path, tmp_path: pathlib.Path, damage: Callable[[pathlib.Path], Any]
) -> None:
    shutil.copytree(data_dir / "digits", tmp_path / "digits")
    damage(next((tmp_path / "digits/1.0.0").glob("*array_record*")))
    message = complaint(lambda: tfds_source(tmp_path))
    assert "damaged" in message and f"delete '{tmp_path / 'digits/1.0.0'}'" in message


def test_the_builder_of_an_own_set_is_found_by_its_name(tmp_path: pathlib.Path) -> None:
    assert load_builder("digits", str(tmp_path)).info.features["label"].num_classes == 10
