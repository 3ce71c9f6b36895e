"""CLIP's tokenizer from a vocabulary and merges cuts texts as transformers 5.24.0's CLIPTokenizer does."""

from __future__ import annotations

import json
import pathlib

import pytest

from archirf_jax.data import clip_vocabulary
from archirf_jax.data.clip_vocabulary import BEGIN, END, MERGES, VOCABULARY
from archirf_jax.data.tokenizer import Tokenizer
from archirf_jax.errors import UserError

tokenizers = pytest.importorskip("tokenizers")
PAIRS = (
    *("r e", "re d</w>", "r e</w>", "s q", "sq u", "squ a", "squa re</w>", "a t</w>", "c at</w>", "b l", "bl u"),
    *("blu e</w>", "i n", "in g</w>", "h o", "ho u", "hou s", "hous e</w>", "' s</w>"),
)
# Texts, and the ids that transformers' CLIPTokenizer gives between the two tokens around every text.
TEXTS: list[tuple[str, list[int]]] = [
    ("", []),
    ("a red  Square's cat", [320, 513, 518, 530, 520]),
    (
        "Blue house, in the 2 seas: \xc9T\xc9",
        [523, 529, 267, 72, 333, 83, 71, 324, 273, 82, 68, 64, 338, 281, 127, 102, 83, 127, 358],
    ),
    ("  leading\tand\n trailing  ", [75, 68, 64, 67, 525, 64, 77, 323, 83, 81, 64, 72, 75, 525]),
    (
        "don't we'll I'd they've I'm you're it's 'small'",
        [
            67,
            78,
            333,
            6,
            339,
            86,
            324,
            6,
            75,
            331,
            328,
            6,
            323,
            83,
            71,
            68,
            344,
            6,
            85,
            324,
            328,
            6,
            332,
            88,
            78,
            340,
            6,
            514,
            72,
            339,
            530,
            530,
            76,
            64,
            75,
            331,
            262,
        ],
    ),
    ("1234 4th 3.14159", [272, 273, 274, 275, 275, 83, 327, 274, 269, 272, 275, 272, 276, 280]),
    ("red<|endoftext|>cat", [513, 532, 520]),
    ("<|startoftext|> x", [531, 343]),
    ("e\u0301te\u0301 \ufb01 \xc5", [127, 102, 83, 127, 358, 171, 105, 479, 127, 354]),
    (
        "\u4f60\u597d, \u0441\u0438\u043d\u0438\u0439 \U0001f600\U0001f468\u200d\U0001f469",
        [
            160,
            121,
            254,
            161,
            98,
            377,
            267,
            141,
            223,
            140,
            116,
            140,
            121,
            140,
            116,
            140,
            373,
            172,
            253,
            246,
            222,
            172,
            253,
            239,
            101,
            158,
            222,
            235,
            172,
            253,
            239,
            358,
        ],
    ),
    ("!!!???...(blue)--[red]", [0, 0, 0, 30, 30, 30, 13, 13, 13, 263, 523, 8, 12, 12, 314, 513, 316]),
    ("\xa0no\u3000break\u200bspace", [77, 334, 65, 512, 64, 330, 158, 222, 489, 82, 79, 64, 66, 324]),
    ("I\u0130\u0131 \u1e9e\xdf", [72, 328, 136, 485, 128, 365, 127, 253, 127, 509]),
    ("_under_score re-d a_b", [318, 84, 77, 67, 68, 337, 318, 82, 66, 78, 514, 514, 268, 323, 320, 318, 321]),
    ("</w> red</w>", [27, 270, 342, 285, 513, 27, 270, 342, 285]),
    ("$#@ %^ & <html> &amp;", [3, 2, 287, 4, 317, 261, 283, 71, 83, 76, 331, 285, 261, 64, 76, 335, 282]),
    ("\xb2\xbd \u2167 \u0663", [126, 366, 126, 377, 158, 227, 371, 149, 352]),
    ("\u0915\u094d\u0937\u093f a\u0308b", [156, 97, 499, 156, 98, 491, 156, 97, 371, 156, 97, 379, 127, 97, 321]),
    ("x\x00y\x07z", [343, 444, 344, 451, 345]),
    ("\u2028line\u2029sep\x85nel", [75, 524, 324, 82, 68, 335, 77, 68, 331]),
]


def vocabulary() -> dict[str, int]:
    """The bytes, the bytes that end a word, what pairs make of them, and the two tokens around a text."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = ["".join(pair.split()) for pair in PAIRS]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *made, BEGIN, END]
    return {word: number for number, word in enumerate(words)}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / VOCABULARY).write_text(json.dumps(vocabulary()))
    (tmp_path / MERGES).write_text("\n".join(["#version: 0.2", *PAIRS, ""]))
    return tmp_path


def test_texts_are_cut_as_transformers_cuts_them(folder: pathlib.Path) -> None:
    made = Tokenizer(clip_vocabulary.content(folder), length=77)
    begin, end = (vocabulary()[token] for token in (BEGIN, END))
    assert made.empty == [begin, end] and made.largest == end and made.id_of("!") == 0
    found = made([text for text, _ in TEXTS])
    for (text, expected), ids, mask in zip(TEXTS, found["ids"].tolist(), found["mask"].tolist(), strict=True):
        assert ids[: sum(mask)] == [begin, *expected, end], text
        assert set(ids[sum(mask) :]) == {end}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (VOCABULARY, "{"),
        (VOCABULARY, json.dumps({"a": 0})),
        (VOCABULARY, json.dumps({"a": "b", BEGIN: 1, END: 2})),
        (MERGES, "#version: 0.2\na b c\n"),
        (MERGES, "#version: 0.2\nx yy\n"),  # not in the vocabulary
    ],
)
def test_files_of_another_kind_are_refused(name: str, content: str, folder: pathlib.Path) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UserError) as caught:
        clip_vocabulary.content(folder)
    assert caught.value.field == "tokenizer" and "\n" not in str(caught.value)
    (folder / name).unlink()
    with pytest.raises(UserError) as caught:
        clip_vocabulary.content(folder)
    assert caught.value.field == "tokenizer"
