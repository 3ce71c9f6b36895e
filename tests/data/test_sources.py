"""A folder or a prepared set is opened as it lies there; anything else is refused in one line that says what to do."""

from __future__ import annotations

import contextlib
import io
import pathlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from archirf_jax.data.folder_source import FolderSource
from archirf_jax.data.preparation import prepare
from archirf_jax.data.sources import open_source
from archirf_jax.errors import UserError


class WordsWithoutImages(tfds.core.GeneratorBasedBuilder):
    """A set that no image model can be trained on."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"word": tfds.features.Text()}))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
        yield 0, {"word": "one"}


class ImagesWithSeveralLabels(tfds.core.GeneratorBasedBuilder):
    """One image with a class, a list of classes, and a number."""

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


def tfds_source(
    directory: pathlib.Path, name: str = "digits", split: str = "train", label_key: str | None = "label"
) -> Any:
    return open_source(name, directory=str(directory), split=split, label_key=label_key)


def refused(field: str, call: Callable[[], Any]) -> str:
    """What a person reads; it is one line, about `field`."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert caught.value.field == field and "\n" not in message and len(message) < 900
    return message


def labels(source: Any) -> list[int]:
    return [source[i]["label"] for i in range(len(source))]


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: pathlib.Path) -> None:
    source = tfds_source(tmp_path, f"folder:{tree(tmp_path, 'dog/2.png', 'cat/9.png', 'dog/1.png', 'Zebra/1.png')}")
    assert source.class_names == ["Zebra", "cat", "dog"] and not source.checked
    found = [(source[i]["image"].name, source[i]["label"]) for i in range(len(source))]
    assert found == [("1.png", 0), ("9.png", 1), ("1.png", 2), ("2.png", 2)]
    assert source.describe(3) == str(tmp_path / "dog/2.png")


def test_classes_named_by_numbers_are_in_the_order_of_the_numbers(tmp_path: pathlib.Path) -> None:
    source = FolderSource(tree(tmp_path, *(f"{name}/1.png" for name in ("10", "2", "0", "02", "a", "1b"))))
    assert source.class_names == ["0", "02", "2", "10", "1b", "a"]


def test_a_folder_without_subfolders_is_one_class_of_its_own_name(tmp_path: pathlib.Path) -> None:
    source = FolderSource(tree(tmp_path / "shells", "b.png", "a.png"))
    assert source.class_names == ["shells"] and labels(source) == [0, 0]


def test_a_folder_may_be_opened_without_labels(tmp_path: pathlib.Path) -> None:
    source = tfds_source(tmp_path, f"folder:{tree(tmp_path, 'a/1.png', 'b/1.png')}", label_key=None)
    assert source.class_names == [] and [list(source[i]) for i in range(2)] == [["image"]] * 2


def test_another_name_number_or_size_makes_another_set_and_another_place_does_not(tmp_path: pathlib.Path) -> None:
    names = ("a/1.png", "b/1.png")
    digests = [FolderSource(tree(tmp_path / str(place), *names)).digest() for place in range(2)]
    (tmp_path / "1/a").rename(tmp_path / "1/c")
    digests.append(FolderSource(tmp_path / "1").digest())
    tree(tmp_path / "2", *names, "b/2.png")
    digests.append(FolderSource(tmp_path / "2").digest())
    (tmp_path / "2/b/2.png").write_bytes(png() + b"1")
    digests.append(FolderSource(tmp_path / "2").digest())
    assert digests[0] == digests[1] and len(set(digests)) == 4


def test_the_parts_and_versions_of_a_set_are_different_sets(data_dir: pathlib.Path) -> None:
    sources = [
        tfds_source(data_dir, split=split, label_key=key) for split in ("train", "train[:9]") for key in ("label", None)
    ]
    assert len({source.digest() for source in sources}) == 4
    assert tfds_source(data_dir, "digits:1.0.0").digest() == sources[0].digest()


def test_the_working_directory_has_a_name_too(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree(tmp_path / "shells", "a.png"))
    assert FolderSource(pathlib.Path(".")).class_names == ["shells"]


def test_hidden_files_and_folders_are_ignored(tmp_path: pathlib.Path) -> None:
    source = FolderSource(tree(tmp_path, "a/1.png", "a/.1.png.swp", "a/.cache/2.png", ".git/3.png", ".DS_Store"))
    assert source.class_names == ["a"] and len(source) == 1


def test_nested_files_belong_to_the_outermost_folder(tmp_path: pathlib.Path) -> None:
    source = FolderSource(tree(tmp_path, "a/1.png", "b/deep/er/2.png", "b/3.png"))
    assert source.class_names == ["a", "b"] and labels(source) == [0, 1, 1]


def test_files_outside_of_class_folders_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    assert "'stray.png'" in refused("data.name", lambda: FolderSource(tree(tmp_path, "a/1.png", "stray.png")))


def test_a_class_without_images_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    (tree(tmp_path, "a/1.png") / "hollow" / "inner").mkdir(parents=True)
    assert "hollow" in refused("data.name", lambda: FolderSource(tmp_path))


@pytest.mark.parametrize("links", [["a/x"], ["a/x", "a/y"], ["a/deep/up"], ["a/twice"]])
def test_a_link_to_images_that_are_there_already_is_refused_by_name(tmp_path: pathlib.Path, links: list[str]) -> None:
    tree(tmp_path, "a/1.png", "a/deep/2.png", "b/1.png")
    for link in links:
        (tmp_path / link).symlink_to(tmp_path / ("a/deep" if link == "a/twice" else "a"))
    assert repr(str(tmp_path / links[0])) in refused("data.name", lambda: FolderSource(tmp_path))


def test_links_to_other_folders_and_files_are_followed(tmp_path: pathlib.Path) -> None:
    tree(tmp_path, "elsewhere/1.png", "set/a/1.png", "set/b/1.png")
    (tmp_path / "set/a/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/b/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/b/2.png").symlink_to(tmp_path / "elsewhere/1.png")
    assert labels(FolderSource(tmp_path / "set")) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "name", ["folder:{}", "folder:{}/absent", "folder:~nobody_of_this_name/x", "folder:" + 300 * "x", "arrays"]
)
def test_a_folder_that_is_empty_or_not_there_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    refused("data.name", lambda: tfds_source(tmp_path, name.format(tmp_path)))


@pytest.mark.parametrize("directory", ["http://example.org/x", "gs://bucket", "~nobody_of_this_name/x", 300 * "x"])
def test_sets_lie_in_a_folder_of_this_machine(directory: str) -> None:
    for call in (
        lambda: open_source("digits", directory=directory, split="train", label_key=None),
        lambda: prepare("digits", directory),
    ):
        refused("data.dir", call)


def test_a_prepared_set_gives_encoded_images_and_labels(data_dir: pathlib.Path) -> None:
    source = tfds_source(data_dir)
    assert len(source) == 1797 and source.class_names == [str(digit) for digit in range(10)] and source.checked
    encoded, label = source[1796]["image"], source[1796]["label"]
    assert Image.open(io.BytesIO(encoded)).size == (8, 8) and type(label) is int and 0 <= label < 10


def test_without_a_label_key_there_are_no_classes(data_dir: pathlib.Path) -> None:
    assert tfds_source(data_dir, label_key=None).class_names == []


def test_a_version_may_be_named(data_dir: pathlib.Path) -> None:
    assert len(tfds_source(data_dir, "digits:1.0.0")) == 1797
    assert "1.0.0" in refused("data.name", lambda: tfds_source(data_dir, "digits:9.9.9"))


@pytest.mark.parametrize("wrong, right", [("digitz", "digits"), ("cifar01", "cifar10"), ("openmojis", "openmoji")])
def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: pathlib.Path, wrong: str, right: str) -> None:
    assert f"{right!r}?" in refused("data.name", lambda: tfds_source(tmp_path, wrong))


@pytest.mark.parametrize("name", ["", "a b", "../up", "x.npz", "cifar10/no_such_variant", "digits/data_dir=x"])
def test_a_name_that_tfds_cannot_read_is_refused_in_one_line(tmp_path: pathlib.Path, name: str) -> None:
    refused("data.name", lambda: tfds_source(tmp_path, name))


@pytest.mark.parametrize("name", ["cifar10", "digits", "imagenet_resized/64x64"])
def test_an_unprepared_set_names_its_command_and_touches_no_network(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def offline(*args: Any) -> None:
        raise AssertionError(f"network: {args}")

    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    message = refused("data.name", lambda: tfds_source(tmp_path, name))
    assert f"--name={name} --dir={tmp_path}" in message
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
    assert "it has train" in refused("data.split", lambda: tfds_source(data_dir, split=split))


def test_a_part_beyond_the_set_is_answered_with_its_size(data_dir: pathlib.Path) -> None:
    assert "1797" in refused("data.split", lambda: tfds_source(data_dir, split="train[:5000]"))


def test_a_folder_has_no_other_split_than_train(tmp_path: pathlib.Path) -> None:
    tree(tmp_path, "cat/1.png")
    for split in ("test", "train[:80]", "train[80%:20%]", "train[:101%]", "train[5%:5%]", "train[:-5%]", "train+test"):
        refused("data.split", lambda split=split: tfds_source(tmp_path, f"folder:{tmp_path}", split=split))


def test_parts_of_a_folder_hold_each_file_once_and_keep_it_when_others_come_or_go(tmp_path: pathlib.Path) -> None:
    def part(split: str) -> set[str]:
        source = tfds_source(tmp_path, f"folder:{tmp_path / 'shells'}", split=split)
        assert source.class_names == ["cat", "dog"]
        return {source.describe(i).removeprefix(str(tmp_path)) for i in range(len(source))}

    names = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(100)]
    tree(tmp_path / "shells", *names)
    kept, held_out = part("train[:80%]"), part("train[80%:]")
    assert not kept & held_out and kept | held_out == part("train") == part("train[:]")
    assert 140 < len(kept) < 180 and kept < part("train[:90.5%]")
    tree(tmp_path / "shells", *(f"dog/new {number}.png" for number in range(50)))
    (tmp_path / "shells/cat/7.png").unlink()
    gone = {"/shells/cat/7.png"}
    assert kept - gone <= part("train[:80%]") and held_out - gone <= part("train[80%:]")


def test_a_part_without_images_is_refused_and_one_without_a_class_keeps_its_number(tmp_path: pathlib.Path) -> None:
    tree(tmp_path / "shells", "cat/1.png", "dog/1.png")
    refused("data.split", lambda: tfds_source(tmp_path, f"folder:{tmp_path / 'shells'}", split="train[:0.001%]"))
    parts = [f"train[{low}%:{low + 1}%]" for low in range(100)]
    found = {}
    for split in parts:
        with contextlib.suppress(UserError):
            source = tfds_source(tmp_path, f"folder:{tmp_path / 'shells'}", split=split)
            found |= {pathlib.Path(source.describe(i)).parent.name: source[i]["label"] for i in range(len(source))}
    assert found == {"cat": 0, "dog": 1}


def test_an_unknown_label_is_answered_with_the_features_there_are(data_dir: pathlib.Path) -> None:
    assert "image, label" in refused("data.label_key", lambda: tfds_source(data_dir, label_key="clas"))


def test_any_class_feature_may_be_the_label_and_other_features_come_as_they_are(tmp_path: pathlib.Path) -> None:
    prepare("images_with_several_labels", str(tmp_path))
    source = tfds_source(tmp_path, "images_with_several_labels", label_key="colour")
    raw = source[0]
    assert source.class_names == ["red", "green", "blue"] and (raw["image"], raw["label"]) == (png(), 2)
    assert raw["n"] == 1 and list(raw["all"]) == [0, 2]


@pytest.mark.parametrize("key", ["all", "n", "image"])
def test_a_feature_that_is_not_a_class_is_refused_as_label(tmp_path: pathlib.Path, key: str) -> None:
    prepare("images_with_several_labels", str(tmp_path))
    refused("data.label_key", lambda: tfds_source(tmp_path, "images_with_several_labels", label_key=key))


def test_a_set_without_images_is_refused(tmp_path: pathlib.Path) -> None:
    prepare("words_without_images", str(tmp_path))
    refused("data.name", lambda: tfds_source(tmp_path, "words_without_images", label_key=None))
