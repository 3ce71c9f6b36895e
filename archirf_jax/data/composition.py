"""Scenes of coloured digits, one or two on a black canvas, and their captions.

`builders.scenes` writes them. Whoever measures generated scenes finds here where an object lies, which colours there
are, which pairs of colour and digit were withheld from training, and the way back from a caption to its objects.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

SIZE, SIDE = 16, 8  # pixels a side of a canvas, and of an object's box
COLOURS = {
    "red": (255, 0, 0),
    "orange": (255, 128, 0),
    "yellow": (255, 255, 0),
    "green": (0, 255, 0),
    "cyan": (0, 255, 255),
    "blue": (0, 0, 255),
    "purple": (160, 0, 255),
    "white": (255, 255, 255),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# The upper left corner (row, column) of each object's box: the left or the upper object comes first.
CORNERS = {"single": ((4, 4),), "side by side": ((4, 0), (4, 8)), "stacked": ((0, 4), (8, 4))}
RELATIONS = {  # of the first object to the second, and of the second to the first
    "side by side": ("to the left of", "to the right of"),
    "stacked": ("above", "below"),
}
# Pairs of colour and digit that no training scene has: each digit once, each colour once or twice.
WITHHELD = (
    *(("red", 0), ("green", 1), ("purple", 2), ("orange", 3), ("cyan", 4)),
    *(("white", 5), ("yellow", 6), ("blue", 7), ("red", 8), ("green", 9)),
)
PAIRS = tuple(itertools.product(COLOURS, range(len(NUMBERS))))
SCENES = {"train": 20_000, "test": 2_000}
TRAIN_DIGITS = 1_400  # scikit-learn's first digits are in training scenes, the others in test scenes
SEED = 0


class Thing(NamedTuple):
    """An object: the name of its colour, and its digit."""

    colour: str
    digit: int


class Scene(NamedTuple):
    """One or two digits.

    Attributes:
        arrangement: a key of CORNERS.
        things: the left or upper one first.
        images: number of each one's image among scikit-learn's digits.
        caption: one of `wordings`.
    """

    arrangement: str
    things: tuple[Thing, ...]
    images: tuple[int, ...]
    caption: str


def compose(split: str, digits: np.ndarray, seed: int = SEED, count: int | None = None) -> list[Scene]:
    """The scenes of a split, in equal parts of each arrangement; a shorter list is the beginning of a longer one.

    Args:
        split: a key of SCENES.
        digits: (1797,) the digit of each of scikit-learn's images.
        seed: of the split.
        count: how many; None = as SCENES says.
    """
    test = split == "test"
    pairs = PAIRS if test else tuple(pair for pair in PAIRS if pair not in WITHHELD)
    numbers = np.arange(len(digits))
    images = [numbers[(digits == digit) & ((numbers >= TRAIN_DIGITS) == test)] for digit in range(len(NUMBERS))]
    # The stream of RandomState is promised to stay the same in all versions of numpy.
    shares = np.random.RandomState([seed, int(test)]).random_sample((count or SCENES[split], 5))
    scenes = []
    for i, (*chosen, wording) in enumerate(shares):
        arrangement = list(CORNERS)[i % len(CORNERS)]
        several = len(CORNERS[arrangement])
        things = tuple(Thing(*pairs[_part(share, len(pairs))]) for share in chosen[:several])
        of_things = [images[thing.digit] for thing in things]
        found = tuple(int(own[_part(share, len(own))]) for own, share in zip(of_things, chosen[2:], strict=False))
        said = wordings(arrangement, things)
        scenes.append(Scene(arrangement, things, found, said[_part(wording, len(said))]))
    return scenes


def render(scene: Scene, levels: np.ndarray) -> np.ndarray:
    """The picture (16, 16, 3) uint8 of a scene: black, and in each box intensity / 16 times the colour.

    Args:
        scene: its images are numbers in `levels`.
        levels: (1797, 8, 8) intensities of scikit-learn's digits, 0 to 16.
    """
    canvas = np.zeros((SIZE, SIZE, 3), np.uint8)
    for thing, image, (row, column) in zip(scene.things, scene.images, CORNERS[scene.arrangement], strict=True):
        shares = levels[image, :, :, None] / 16
        canvas[row : row + SIDE, column : column + SIDE] = np.round(shares * np.asarray(COLOURS[thing.colour]))
    return canvas


def wordings(arrangement: str, things: tuple[Thing, ...]) -> list[str]:
    """Every caption of a scene: from either object's side, its digits as words or as numerals."""
    captions = []
    for numerals in (False, True):
        named = [_named(thing, numerals) for thing in things]
        if arrangement == "single":
            captions += named
        else:
            forth, back = RELATIONS[arrangement]
            captions += [f"{named[0]} {forth} {named[1]}", f"{named[1]} {back} {named[0]}"]
    return captions


def parse(caption: str) -> tuple[str, tuple[Thing, ...]]:
    """(arrangement, objects, the left or upper one first) of a caption.

    Raises:
        ValueError: it is not one of `wordings`.
    """
    words = " ".join(caption.lower().split())
    for arrangement, (forth, back) in RELATIONS.items():
        for relation, order in ((forth, 1), (back, -1)):
            before, found, after = words.partition(f" {relation} ")
            if found:
                return arrangement, (_thing(before, caption), _thing(after, caption))[::order]
    return "single", (_thing(words, caption),)


def _part(share: float, parts: int) -> int:
    """Which of so many equal parts of [0, 1) holds the share."""
    return int(share * parts)


def _named(thing: Thing, numerals: bool) -> str:
    article = "an" if thing.colour[0] in "aeiou" else "a"
    return f"{article} {thing.colour} {thing.digit if numerals else NUMBERS[thing.digit]}"


def _thing(words: str, caption: str) -> Thing:
    article, colour, number = (*words.split(), "", "", "")[:3]
    digits = {word: digit for digit, name in enumerate(NUMBERS) for word in (name, str(digit))}
    if article not in ("a", "an") or colour not in COLOURS or number not in digits or len(words.split()) != 3:
        raise ValueError(f"{caption!r} is not the caption of a scene")
    return Thing(colour, digits[number])
