"""Laws of tokenizers: what is around a text, what fills it, what of a long one is left, and which file it was."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from archirf_jax.data import tokenizer
from archirf_jax.data.tokenizer import Tokenizer, described, of_run, read
from archirf_jax.errors import UserError
from tests import running
from tests.data.words import BEGIN, END, UNKNOWN, WORDS, tokenizer_json

pytest.importorskip("tokenizers")
LONG = "a red square above a blue circle"


def ids_of(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / tokenizer.FILE
    path.write_text(tokenizer_json())
    return path


@pytest.mark.parametrize(("pad_id", "fills"), [(0, 0), (7, 7), (None, END)])
def test_a_text_lies_between_its_special_tokens_and_padding_follows(pad_id: int | None, fills: int) -> None:
    made = Tokenizer(tokenizer_json(), 6, pad_id)(["a Red square", "", "a green"])
    expected = [
        [BEGIN, *ids_of("a red square"), END, fills],
        [BEGIN, END, *[fills] * 4],
        [BEGIN, *ids_of("a"), UNKNOWN, END, fills, fills],
    ]
    assert made["ids"].tolist() == expected and made["ids"].dtype == np.int32
    assert made["mask"].sum(axis=1).tolist() == [5, 2, 4] and made["mask"].dtype == np.bool_
    assert not np.any(np.diff(made["mask"].astype(int), axis=1) > 0)  # tokens first


@pytest.mark.parametrize("begins", [True, False])
def test_a_long_text_keeps_its_beginning_and_the_token_that_ends_it(begins: bool) -> None:
    whole = [*([BEGIN] if begins else []), *ids_of(LONG)]
    with running.messages() as said:
        made = Tokenizer(tokenizer_json(begins), 5, 0)([LONG, "a"])
    assert made["ids"][0].tolist() == [*whole[:4], END] and made["mask"][0].all()
    assert len(said) == 1 and "1 of the texts" in said[0] and f"up to {len(whole) + 1}" in said[0]
    with running.messages() as said:
        Tokenizer(tokenizer_json(begins), len(whole) + 1, 0)([LONG])
    assert not said


def test_what_the_file_says_of_lengths_and_padding_is_not_taken() -> None:
    """Published files hold those of another use."""
    cut = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    fill = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    fill |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    count = len(ids_of(LONG)) + 2
    given = Tokenizer(tokenizer_json(truncation=cut, padding=fill), 12, 0)
    assert given([LONG])["mask"].sum() == count and given.empty == [BEGIN, END]
    with running.messages() as said:
        Tokenizer(given.content, 5, 0)([LONG])
    assert f"up to {count}" in said[0]


def test_no_texts_are_no_rows() -> None:
    assert Tokenizer(tokenizer_json(), 6, 0)([])["ids"].shape == (0, 6)


def test_the_digest_is_of_all_that_ids_depend_on(tmp_path: pathlib.Path) -> None:
    content = tokenizer_json()
    same = {Tokenizer(content, 6, 0, place).digest for place in ("here", "there")}
    others = {Tokenizer(tokenizer_json(False), 6, 0), Tokenizer(content, 7, 0), Tokenizer(content, 6, 1)}
    assert len(same) == 1 and len(same | {each.digest for each in others}) == 4
    assert Tokenizer(content, 6, None).digest == Tokenizer(content, 6, END).digest


def test_a_run_says_what_a_conditioner_has_to_know_and_keeps_its_file(file: pathlib.Path) -> None:
    group = described(read(file, 9), vocab_size=len(WORDS))
    assert (group["length"], group["pad_id"], group["empty"]) == (9, END, [BEGIN, END])
    assert of_run(file.parent, group).length == 9
    assert of_run(file.parent, group, 5)([LONG])["ids"].shape == (1, 5)
    with pytest.raises(UserError) as caught:
        of_run(file.parent, group, 10)
    assert caught.value.field == "tokenizer.length"
    file.write_text(tokenizer_json(False))
    with pytest.raises(UserError) as caught:
        of_run(file.parent, group)
    assert caught.value.field == "tokenizer"


def test_a_tokenizer_with_more_ids_than_the_network_is_refused(file: pathlib.Path) -> None:
    with pytest.raises(UserError) as caught:
        described(read(file, 9, 0), vocab_size=len(WORDS) - 1)
    assert caught.value.field == "tokenizer"
    with pytest.raises(UserError):
        described(read(file, 9, len(WORDS)), vocab_size=len(WORDS))


@pytest.mark.parametrize("content", [None, "", "[1]", "{}", '{"model": 3}', "\x00", tokenizer_json()[:-40]])
def test_a_file_that_is_absent_or_damaged_is_named(content: str | None, tmp_path: pathlib.Path) -> None:
    path = tmp_path / tokenizer.FILE
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        read(path, 9, 0)
    assert caught.value.field == "tokenizer" and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_length_without_room_for_a_word_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        Tokenizer(tokenizer_json(), 2, 0)(["a"])
    assert caught.value.field == "tokenizer.length"
