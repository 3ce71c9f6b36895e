"""Laws of text caches: each caption once, one pass or many give the same bytes, and a batch has those of its images."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.data import text_cache
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.fields import make_fields, shapes
from archirf_jax.data.pipeline import load, make_feed
from archirf_jax.data.resumable import PROGRESS
from archirf_jax.data.text_cache import HEADER, KEYS, MASK, POOLED, TOKENS, TextCache
from archirf_jax.errors import UserError
from tests.data import settings
from tests.data.settings import RESIDENT, STREAMED
from tests.data.test_captions import SEVERAL, SIZE, jsonl, picture

BATCH, LENGTH, WIDTH = 4, 5, 3
WORDS = ["a", "b", "größer", "a", "d", "e", "f", "g b"]
PLAN: dict[str, Any] = dict(encoder="one", length=LENGTH, width=WIDTH, tokens="tokens", masked=True)
PLAN |= dict(pooled="first", pooled_width=2)


def encode(texts: list[str]) -> dict[str, np.ndarray]:
    numbers = np.asarray([sum(text.encode()) / 100 for text in texts], np.float32)
    tokens = numbers[:, None, None] + np.arange(LENGTH * WIDTH, dtype=np.float32).reshape(LENGTH, WIDTH)
    mask = np.arange(LENGTH) < np.asarray([[len(text.split())] for text in texts])
    return {"tokens": tokens, "mask": mask, "pooled": np.stack([numbers, -numbers], axis=1)}


def make(folder: pathlib.Path, texts: Any = WORDS, calls: int = 1000, batch: int = BATCH, **changes: Any) -> Any:
    left = [calls]

    def until(texts: list[str]) -> dict[str, np.ndarray]:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return encode(texts)

    return text_cache.make(folder, texts, until, PLAN | changes, batch)


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("calls", [0, 1])
def test_a_pass_that_was_killed_goes_on_with_the_same_bytes(calls: int, tmp_path: pathlib.Path) -> None:
    make(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", calls=calls)
    with pytest.raises(UserError) as caught:
        TextCache(tmp_path / "cut", "field")
    assert caught.value.field == "field"
    make(tmp_path / "cut", WORDS[::-1], calls=2 - calls)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert files(tmp_path / "cut").keys() == {HEADER, KEYS, TOKENS, MASK, POOLED}
    make(tmp_path / "cut", calls=0)  # nothing to do


def test_equal_captions_are_stored_once_and_each_has_its_own_states(tmp_path: pathlib.Path) -> None:
    assert make(tmp_path).captions == len({*WORDS, ""})
    cache = TextCache(tmp_path, "field")
    rows = cache.rows(["größer", "a", "", "a", "x"])
    assert rows[1] == rows[3] and rows[4] == -1 and len(set(rows)) == 4
    for name, array in encode(["größer", "a", ""]).items():
        np.testing.assert_allclose(cache.states(rows[:3])[name], array, rtol=1e-3)
    assert cache.states(rows)["tokens"].dtype == cache.states(rows)["pooled"].dtype == np.float16
    np.testing.assert_array_equal(cache.empty()["mask"], np.zeros(LENGTH, bool))


@pytest.mark.parametrize("changes", [{"encoder": "two"}, {"texts": WORDS[1:]}, {"batch": 3}, {"masked": False}])
def test_the_beginning_of_another_cache_is_not_gone_on_with(changes: dict[str, Any], tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, calls=1)
    before = files(tmp_path)
    changes |= {"texts": [*WORDS, "new"]} if "texts" in changes else {}
    with pytest.raises(UserError) as caught:
        make(tmp_path, **changes)
    assert caught.value.field == "out" and files(tmp_path) == before


def test_states_that_are_not_finite_end_the_pass(tmp_path: pathlib.Path) -> None:
    def wrong(texts: list[str]) -> dict[str, np.ndarray]:
        made = encode(texts)
        return made | {"tokens": made["tokens"] * np.nan}

    with pytest.raises(UserError) as caught:
        text_cache.make(tmp_path, WORDS, wrong, PLAN, BATCH)
    assert caught.value.field == "text_encoder" and (tmp_path / PROGRESS).exists()


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Images whose grey level is their number, with one to three captions each, and the cache of these."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(SIZE):
        picture(tmp_path / "images" / str(number % 2) / f"{number:02}.png", number)
    jsonl(tmp_path / "images", SEVERAL)
    make(tmp_path / "texts", [text for row in SEVERAL.values() for text in row])
    return tmp_path


def configured(folder: pathlib.Path, room: int, kind: str, **options: Any) -> Any:
    field = {"name": kind} | ({"cache": str(folder / "texts")} if kind == "text_states" else {}) | options
    given: dict[str, Any] = dict(name=f"folder:{folder / 'images'}", device_cache_mib=room)
    return settings.config(BATCH, 9, **given, fields={"words" if kind == "text_states" else "caption": field})


def batches(config: Any) -> tuple[Dataset, list[dict[str, np.ndarray]]]:
    dataset = load(config.data)
    feed = make_feed(dataset, config)
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(9)]
    found = [feed.batch(feed.chunk(step, 1)[0], jax.numpy.int32(0), key) for step, key in enumerate(keys)]
    feed.close()
    return dataset, [jax.tree.map(np.asarray, one) for one in found]


def test_a_batch_has_the_states_of_the_caption_that_would_be_drawn(folder: pathlib.Path) -> None:
    dataset, words = batches(configured(folder, RESIDENT, "caption"))
    config = configured(folder, RESIDENT, "text_states", prefix="t_")
    stated, resident = batches(config)
    streamed = batches(configured(folder, STREAMED, "text_states", prefix="t_"))[1]
    jax.tree.map(np.testing.assert_array_equal, resident, streamed)
    declared = shapes(make_fields(config.data), BATCH)
    assert {name: (one.shape, one.dtype) for name, one in resident[0].items()} == {
        name: (one.shape, one.dtype) for name, one in declared.items()
    }
    assert stated.captions(range(SIZE)) == dataset.captions(range(SIZE)) and dataset.tokenizer is not None
    for batch, seen in zip(resident, words, strict=True):
        np.testing.assert_array_equal(batch["image"], seen["image"])
        numbers = np.round((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)
        for row, number in enumerate(numbers):
            ids = dataset.tokenizer(SEVERAL[number])["ids"].tolist()
            text = SEVERAL[number][ids.index(seen["ids"][row].tolist())]
            for name, array in encode([text]).items():
                np.testing.assert_allclose(batch[f"t_{name}"][row], array[0], rtol=1e-3)


def test_a_set_is_another_one_with_other_captions_or_another_encoder(folder: pathlib.Path) -> None:
    def digest() -> str:
        return load(configured(folder, RESIDENT, "text_states").data).digest

    digests = [digest(), digest()]
    jsonl(folder / "images", SEVERAL | {3: SEVERAL[4]})
    digests.append(digest())
    for path in (folder / "texts").iterdir():
        path.unlink()
    make(folder / "texts", [text for row in SEVERAL.values() for text in row], encoder="two")
    digests.append(digest())
    assert digests[0] == digests[1] and len(set(digests)) == 3


@pytest.mark.parametrize("name", [HEADER, KEYS, TOKENS, MASK, POOLED])
def test_a_cache_that_is_cut_short_is_refused_in_a_line(name: str, folder: pathlib.Path) -> None:
    content = (folder / "texts" / name).read_bytes()
    (folder / "texts" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError) as caught:
        load(configured(folder, RESIDENT, "text_states").data)
    assert caught.value.field == "data.fields.words.cache" and "\n" not in str(caught.value)


def test_captions_that_are_not_in_the_cache_are_named_and_missing_ones_may_be_the_null_text(
    folder: pathlib.Path,
) -> None:
    jsonl(folder / "images", SEVERAL | {3: ["a new one"], 4: []})
    for null_text, field in ((False, "data.fields.words"), (True, "data.fields.words.cache")):
        with pytest.raises(UserError) as caught:
            load(configured(folder, RESIDENT, "text_states", null_text=null_text).data)
        assert caught.value.field == field
    assert "a new one" in str(caught.value)
    jsonl(folder / "images", SEVERAL | {4: []})
    dataset = load(configured(folder, RESIDENT, "text_states", null_text=True).data)
    row = [i for i in range(SIZE) if "04.png" in dataset.source.describe(i)][0]
    assert not dataset.example(row)["mask"].any()


def test_without_the_cache_the_shapes_must_be_given() -> None:
    with pytest.raises(UserError) as caught:
        make_fields(settings.data(fields={"words": {"name": "text_states", "cache": "x"}}))
    assert caught.value.field == "data.fields.text_states.length"
