"""Captions: whatever holds them, a batch has their tokens, each of its own image, and nothing is missing in silence."""

from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from archirf_jax import data
from archirf_jax.data import vocabulary
from archirf_jax.data.checks import recall
from archirf_jax.data.composition import COLOURS, CORNERS, SCENES, SIDE, parse
from archirf_jax.data.fields import make_fields, shapes
from archirf_jax.data.pipeline import load, make_feed
from archirf_jax.data.preparation import prepare
from archirf_jax.data.sources import open_source
from archirf_jax.data.tokenizer import FILE
from archirf_jax.errors import UserError
from tests.data import settings
from tests.data.settings import RESIDENT, STREAMED

SIZE, BATCH, STEPS = 11, 4, 9
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
CAPTION = {"caption": {"name": "caption"}}


def words(number: int, length: int = 1) -> str:
    return " ".join([f"A picture of {NAMES[number]}", *["again"] * (length - 1)])


def picture(file: pathlib.Path, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), number).save(file)


def beside(folder: pathlib.Path, texts: dict[int, list[str]]) -> None:
    for number, rows in texts.items():
        next(folder.glob(f"*/{number:02}.png")).with_suffix(".txt").write_text("\n".join(rows))


def jsonl(folder: pathlib.Path, texts: dict[int, list[str]]) -> None:
    rows = ({"file_name": f"{number % 2}/{number:02}.png", "text": row} for number, row in texts.items())
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")


def table(folder: pathlib.Path, texts: dict[int, list[str]]) -> None:
    """In each class's own folder, where names are relative to it, as a spreadsheet writes it."""
    for label in "01":
        rows = [f'{n:02}.png,"{row}"' for n, rows in texts.items() for row in rows if str(n % 2) == label]
        (folder / label / "metadata.csv").write_text("\r\n".join(["file_name,text", *rows]), encoding="utf-8-sig")


KINDS = {"txt": beside, "jsonl": jsonl, "csv": table}
TEXTS = {number: [words(number)] for number in range(SIZE)}
SEVERAL = {number: [words(number, 1 + place) for place in range(1 + number % 3)] for number in range(SIZE)}


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Images whose grey level is their number, in two classes; not captioned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(SIZE):
        picture(tmp_path / "images" / str(number % 2) / f"{number:02}.png", number)
    return tmp_path / "images"


def configured(folder: pathlib.Path, cache: int = RESIDENT, **options: Any) -> ConfigDict:
    given = dict(name=f"folder:{folder}", device_cache_mib=cache, fields={"caption": {"name": "caption"} | options})
    return settings.config(BATCH, STEPS, **given)


def batches(config: ConfigDict, start: int = 0) -> list[dict[str, np.ndarray]]:
    feed = make_feed(load(config.data), config)
    batch = jax.jit(feed.batch)
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(start, STEPS)]
    found = [batch(feed.chunk(start + i, 1)[0], 0, key) for i, key in enumerate(keys)]
    feed.close()
    return [jax.tree.map(np.asarray, one) for one in found]


def numbers(batch: dict[str, np.ndarray]) -> np.ndarray:
    return np.round((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)


def refused(field: str, config: ConfigDict) -> str:
    with pytest.raises(UserError) as caught:
        load(config.data)
    assert caught.value.field == field and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_of_a_folder_has_the_tokens_of_its_own_captions(folder: pathlib.Path, kind: str) -> None:
    KINDS[kind](folder, SEVERAL)
    config = configured(folder)
    dataset = load(config.data)
    order = [int(pathlib.Path(dataset.source.describe(i)).stem) for i in range(SIZE)]
    assert dataset.captions(range(SIZE)) == [SEVERAL[number] for number in order]
    assert dataset.tokenizer is not None
    seen = set()
    for batch in batches(config):
        assert batch["ids"].dtype == np.int32 and batch["mask"].dtype == bool
        for number, ids, mask in zip(numbers(batch), batch["ids"], batch["mask"], strict=True):
            allowed = dataset.tokenizer(SEVERAL[number])
            assert ids.tolist() in allowed["ids"].tolist() and mask.tolist() in allowed["mask"].tolist()
            seen.add((number, mask.sum()))
    assert len(seen) > SIZE  # other epochs see other captions of an image


@pytest.mark.parametrize("texts", [TEXTS, SEVERAL], ids=["one", "several"])
def test_resident_and_streamed_captions_are_identical_from_whatever_step(
    folder: pathlib.Path, texts: dict[int, list[str]]
) -> None:
    jsonl(folder, texts)
    resident, streamed = (batches(configured(folder, cache)) for cache in (RESIDENT, STREAMED))
    later = batches(configured(folder, STREAMED), start=5)
    jax.tree.map(np.testing.assert_array_equal, resident, streamed)
    jax.tree.map(np.testing.assert_array_equal, resident[5:], later)


def test_each_caption_of_an_image_is_drawn_as_often_as_the_others() -> None:
    field = make_fields(settings.data(fields={"caption": {"name": "caption", "length": 1, "captions": 3}}))["caption"]
    ids = np.tile(np.arange(3)[:, None], (6_000, 1, 1))
    counts = np.arange(6_000, dtype=np.int32) % 3 + 1
    arrays = {"ids": ids, "mask": ids > 0, "caption_count": counts}
    drawn = np.asarray(field.finish(jax.tree.map(jnp.asarray, arrays), jax.random.key(0))["ids"])[:, 0]
    for count in (1, 2, 3):
        shares = np.bincount(drawn[counts == count], minlength=3) / 2_000
        np.testing.assert_allclose(shares, (np.arange(3) < count) / count, atol=0.04)


def test_captions_are_tokens_once_and_a_folder_that_streams_is_checked_once(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(folder, TEXTS)
    config = configured(folder, STREAMED)
    dataset = load(config.data)
    assert recall(dataset.source, dataset.fields).passed.all()
    feed = make_feed(dataset, config)
    for file in folder.rglob("*.txt"):
        file.unlink()
    assert feed.batch(feed.chunk(0, 1)[0], jnp.int32(0), jax.random.key(0))["mask"].any()
    feed.close()


@pytest.mark.parametrize("gone", ["absent", "empty"])
def test_missing_captions_are_counted_and_named_and_may_be_the_null_text(folder: pathlib.Path, gone: str) -> None:
    beside(folder, TEXTS | ({} if gone == "absent" else {3: [""], 4: [" ", "\t"]}))
    for number in (3, 4) if gone == "absent" else ():
        (folder / str(number % 2) / f"{number:02}.txt").unlink()
    message = refused("data.fields.caption", configured(folder))
    assert "03.png" in message and "04.png" in message and f"2 of {SIZE}" in message
    for batch in batches(configured(folder, null_text=True)):
        assert (batch["mask"].any(axis=1) == ~np.isin(numbers(batch), (3, 4))).all()


def test_of_many_missing_captions_a_few_are_named(folder: pathlib.Path) -> None:
    message = refused("data.fields.caption", configured(folder))
    assert f"{SIZE} of {SIZE}" in message and message.count(".png") == 5


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", b'{"file_name": "0/00.png", "text": "x"}\n{"file_name": '),
        ("metadata.jsonl", b'["0/00.png", "x"]'),
        ("metadata.jsonl", b'{"file_name": "0/00.png", "text": 3}'),
        ("metadata.jsonl", b'{"text": "x"}'),
        ("metadata.csv", b"file,text\n0/00.png,x"),
        ("metadata.csv", b"file_name,caption\n0/00.png,x"),
        ("metadata.csv", b'file_name,text\n0/00.png,"' + 200_000 * b"x"),
        ("metadata.csv", b"file_name,text\n0/00.png,\xff"),
        ("0/00.txt", b"\xff\xfe"),
    ],
)
def test_a_damaged_file_of_captions_is_named(folder: pathlib.Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert name in refused("data.name", configured(folder))


def test_texts_are_no_images_and_without_the_field_nothing_reads_them(folder: pathlib.Path) -> None:
    before = load(settings.data(name=f"folder:{folder}"))
    beside(folder, TEXTS)
    jsonl(folder, TEXTS)
    after = load(settings.data(name=f"folder:{folder}"))
    assert len(before) == len(after) == SIZE and before.digest == after.digest


def test_another_text_or_tokenizer_makes_another_set(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    jsonl(folder, TEXTS)
    (tmp_path / FILE).write_text(vocabulary.of_words(["a picture of one"], 6).content)
    digests = {load(configured(folder).data).digest for _ in range(2)}
    digests.add(load(configured(folder, tokenizer=str(tmp_path / FILE)).data).digest)
    jsonl(folder, TEXTS | {3: [words(4)]})
    digests.add(load(configured(folder).data).digest)
    assert len(digests) == 3


def test_a_set_opens_again_by_its_configuration_and_batches_are_as_declared(folder: pathlib.Path) -> None:
    jsonl(folder, SEVERAL)
    dataset = data.folder(str(folder), size=8, channels=1, captions=True)
    again = load(ConfigDict(dataset.config()))
    assert dataset.arrays is not None and again.arrays is not None and dataset.digest == again.digest
    jax.tree.map(np.testing.assert_array_equal, dataset.arrays, again.arrays)
    promised = shapes(make_fields(ConfigDict(dataset.config())), BATCH)
    assert {name: (one.shape, one.dtype) for name, one in promised.items() if name in ("ids", "mask")} == {
        "ids": ((BATCH, 6), np.int32),
        "mask": ((BATCH, 6), np.bool_),
    }


def test_a_tokenizer_of_words_knows_its_words_alone_and_is_the_same_whatever_their_order() -> None:
    texts = ["A red seven", "a blue two, above", ""]
    ours = vocabulary.of_words(texts)
    assert ours.length == 5 and ours.digest == vocabulary.of_words(texts[::-1]).digest
    found = ours(["a RED two", "", "a green cat"])
    assert found["mask"].sum(axis=1).tolist() == [3, 0, 3]
    assert found["ids"][0].tolist() == [ours([word])["ids"][0, 0] for word in ("a", "red", "two")] + [0, 0]
    assert found["ids"][2, 1] == found["ids"][2, 2] == 1 and len(set(found["ids"][0, :3])) == 3


def test_a_tokenizer_may_be_a_file_or_its_folder_and_longer_captions_are_cut(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    jsonl(folder, TEXTS)
    (tmp_path / FILE).write_text(vocabulary.of_words([words(0)]).content)
    for place, length in ((tmp_path / FILE, None), (tmp_path, 2)):
        ids = batches(configured(folder, tokenizer=str(place), length=length))[0]["ids"]
        assert ids.shape == (BATCH, length or 4) and (ids[:, :2] == [[2, 4]]).all()


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("data.fields.caption.tokenizer", {"tokenizer": "absent"}),
        ("data.fields.caption.length", {"length": 0}),
        ("data.fields.caption.captions", {"captions": 0}),
        ("data.fields.caption.lenght", {"lenght": 4}),
        ("data.fields", {"feature": "title"}),
    ],
)
def test_a_wrong_option_is_refused(folder: pathlib.Path, field: str, options: dict[str, Any]) -> None:
    jsonl(folder, TEXTS)
    refused(field, configured(folder, **options))


def test_a_file_that_says_no_length_needs_one_and_a_damaged_one_is_refused(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    jsonl(folder, TEXTS)
    content = json.loads(vocabulary.of_words([words(0)]).content) | {"padding": None}
    (tmp_path / FILE).write_text(json.dumps(content))
    refused("data.fields.caption.length", configured(folder, tokenizer=str(tmp_path)))
    given = configured(folder, tokenizer=str(tmp_path), length=3, pad_id=0)
    assert batches(given)[0]["ids"].shape == (BATCH, 3)
    (tmp_path / FILE).write_text("{}")
    refused("tokenizer", given)


def test_without_the_set_the_length_must_be_given() -> None:
    with pytest.raises(UserError) as caught:
        make_fields(settings.data(fields=CAPTION))
    assert caught.value.field == "data.fields.caption.length"


def images(count: int) -> np.ndarray:
    return np.tile(np.arange(count, dtype=np.uint8)[:, None, None, None], (1, 8, 8, 1))


def test_arrays_may_have_captions() -> None:
    dataset = data.from_arrays(images(3), captions=["a cat", ["a dog", "a puppy dog"], "a cow"])
    assert dataset.captions([2, 1]) == [["a cow"], ["a dog", "a puppy dog"]] and dataset.arrays is not None
    assert dataset.arrays["ids"].shape == (3, 2, 3) and dataset.arrays["caption_count"].tolist() == [1, 2, 1]
    other = data.from_arrays(images(3), captions=["a cat", ["a dog", "a dog puppy"], "a cow"])
    assert len({dataset.digest, other.digest, data.from_arrays(images(3)).digest}) == 3
    with pytest.raises(UserError):
        data.from_arrays(images(3)).captions([0])


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("captions", {"captions": ["a", "b"]}),
        ("captions", {"captions": "abc"}),
        ("captions", {"captions": ["a", "b", 3]}),
        ("data.fields.caption", {"captions": ["a", "b", ""]}),
        ("tokenizer", {"tokenizer": "somewhere"}),
    ],
)
def test_other_captions_of_arrays_are_refused(field: str, given: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        data.from_arrays(images(3), **given)
    assert caught.value.field == field


class Titled(tfds.core.GeneratorBasedBuilder):
    """Images with a title and several captions."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1)),
            "title": tfds.features.Text(),
            "caption": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Any]]:
        for number in range(SIZE):
            png = io.BytesIO()
            Image.new("L", (8, 8), number).save(png, "PNG")
            png.seek(0)
            yield number, {"image": png, "title": f"Zwölf {NAMES[number]}", "caption": SEVERAL[number]}


@pytest.mark.parametrize("feature", ["title", "caption"])
def test_any_text_of_a_prepared_set_may_be_the_caption(tmp_path: pathlib.Path, feature: str) -> None:
    prepare("titled", str(tmp_path))
    place = {"tokenizer": str(tmp_path / "titled")} if feature == "title" else {}
    (tmp_path / "titled" / FILE).write_text(vocabulary.of_words(["zwölf", *NAMES], 2).content)
    for cache in (RESIDENT, STREAMED):
        given = dict(name="titled", dir=str(tmp_path), label_key=None, device_cache_mib=cache)
        config = settings.config(
            BATCH, STEPS, **given, fields={"text": {"name": "caption", "feature": feature} | place}
        )
        dataset = load(config.data)
        found = sorted(dataset.captions(range(SIZE)))
        assert found == sorted([f"Zwölf {name}"] if feature == "title" else SEVERAL[i] for i, name in enumerate(NAMES))
        assert all(batch["mask"].any(axis=1).all() for batch in batches(config))
    refused("data.fields", settings.config(BATCH, STEPS, **given, fields={"text": {"name": "caption", "feature": "x"}}))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the first scenes of each split."""
    path = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        for split in SCENES:
            patch.setitem(SCENES, split, 60)
        prepare("scenes", str(path))
    return path


def test_scenes_are_prepared_with_a_tokenizer_of_their_words(scenes: pathlib.Path) -> None:
    dataset = data.load("scenes", dir=str(scenes), captions=True)
    assert (dataset.image_size, dataset.channels, len(dataset)) == (16, 3, 60)
    assert dataset.class_names == ["single", "side by side", "stacked"] and dataset.arrays is not None
    for i, [caption] in enumerate(dataset.captions(range(60))):
        arrangement, things = parse(caption)
        assert dataset.class_names[dataset.arrays["label"][i]] == arrangement
        assert dataset.arrays["mask"][i].sum() == len(caption.split())
        for thing, (row, column) in zip(things, CORNERS[arrangement], strict=True):
            box = dataset.arrays["image"][i, row : row + SIDE, column : column + SIDE].astype(float)
            shares = box.max(axis=-1, keepdims=True) / 255  # every colour has a channel of 255
            assert np.abs(box - shares * COLOURS[thing.colour]).max() <= 1 and box.any()
    assert dataset.tokenizer is not None and (dataset.arrays["ids"][dataset.arrays["mask"]] > 1).all()
    assert [path.read_text() for path in scenes.rglob(FILE)] == [dataset.tokenizer.content]


def test_a_prepared_set_whose_tokenizer_is_gone_says_how_to_make_it(scenes: pathlib.Path) -> None:
    file = next(scenes.rglob(FILE))
    content = file.read_text()
    file.unlink()
    given = dict(name="scenes", dir=str(scenes), image_size=16, channels=3, fields=CAPTION)
    refused("data.fields.caption.tokenizer", settings.config(BATCH, STEPS, **given))
    prepare("scenes", str(scenes))
    assert file.read_text() == content
    source = open_source("scenes", directory=str(scenes), split="test", label_key=None)
    assert all(parse(source.captions(i)[0]) for i in range(len(source)))
