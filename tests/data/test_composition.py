"""Scenes: what is drawn is what the caption says, in its place and colour, of digits that the other split never has."""

from __future__ import annotations

import collections
import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from archirf_jax.data import composition
from archirf_jax.data.composition import COLOURS, CORNERS, NUMBERS, PAIRS, SIDE, WITHHELD, Scene, Thing, compose, parse

DIGITS = load_digits()


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {split: compose(split, DIGITS.target) for split in composition.SCENES}


def render(scene: Scene) -> np.ndarray:
    return composition.render(scene, DIGITS.images)


def test_the_scenes_are_the_same_bytes_wherever_they_are_made(scenes: dict[str, list[Scene]]) -> None:
    found = hashlib.sha256()
    for split in scenes.values():
        for scene in split[:500]:
            found.update(render(scene).tobytes() + repr(scene).encode())
    assert found.hexdigest() == "5badd293e70b07609a950893b68a6ccc8d47395fc2dbf6807503e9e264679643"


def test_another_seed_makes_other_scenes_and_fewer_are_the_first_ones(scenes: dict[str, list[Scene]]) -> None:
    assert compose("train", DIGITS.target, count=30) == scenes["train"][:30]
    others = compose("train", DIGITS.target, seed=1, count=30)
    assert not [ours for ours, theirs in zip(scenes["train"], others, strict=False) if ours == theirs]


def test_a_third_of_each_split_has_each_arrangement(scenes: dict[str, list[Scene]]) -> None:
    assert {split: len(found) for split, found in scenes.items()} == {"train": 20_000, "test": 2_000}
    for found in scenes.values():
        counts = collections.Counter(scene.arrangement for scene in found)
        assert counts.keys() == CORNERS.keys() and max(counts.values()) - min(counts.values()) <= 1


def test_the_pixels_of_an_object_lie_in_its_box_and_are_intensity_times_colour(scenes: dict[str, list[Scene]]) -> None:
    boxes = {
        "single": [np.s_[4:12, 4:12]],
        "side by side": [np.s_[4:12, 0:8], np.s_[4:12, 8:16]],
        "stacked": [np.s_[0:8, 4:12], np.s_[8:16, 4:12]],
    }
    for scene in scenes["test"][:300]:
        canvas = render(scene)
        assert canvas.shape == (16, 16, 3) and canvas.dtype == np.uint8
        for thing, image, box in zip(scene.things, scene.images, boxes[scene.arrangement], strict=True):
            assert DIGITS.target[image] == thing.digit
            exact = DIGITS.images[image][..., None] / 16 * np.asarray(COLOURS[thing.colour])
            assert np.abs(canvas[box] - exact).max() <= 0.5
            canvas[box] = 0
        assert not canvas.any()


def test_the_colours_are_eight_and_no_two_are_alike() -> None:
    assert len(set(COLOURS.values())) == len(COLOURS) == 8
    assert COLOURS["orange"] == (255, 128, 0) and COLOURS["purple"] == (160, 0, 255)


def test_every_caption_says_what_its_scene_shows(scenes: dict[str, list[Scene]]) -> None:
    for found in scenes.values():
        for scene in found:
            assert parse(scene.caption) == (scene.arrangement, scene.things)


@pytest.mark.parametrize("arrangement", CORNERS)
def test_every_wording_leads_back_to_its_scene(arrangement: str) -> None:
    for first in PAIRS:
        things = (Thing(*first), Thing("orange", 8))[: len(CORNERS[arrangement])]
        captions = composition.wordings(arrangement, things)
        assert len(set(captions)) == len(captions) or things[0] == things[1]
        for caption in captions:
            assert parse(caption) == (arrangement, things)


@pytest.mark.parametrize(
    ("caption", "arrangement", "things"),
    [
        ("a red seven to the left of a blue two", "side by side", (("red", 7), ("blue", 2))),
        ("a blue two to the right of a red seven", "side by side", (("red", 7), ("blue", 2))),
        ("a green four above a white nine", "stacked", (("green", 4), ("white", 9))),
        ("a white 9 below a green 4", "stacked", (("green", 4), ("white", 9))),
        ("an orange eight", "single", (("orange", 8),)),
    ],
)
def test_captions_are_plain_sentences(caption: str, arrangement: str, things: tuple[tuple[str, int], ...]) -> None:
    assert caption in composition.wordings(arrangement, tuple(Thing(*thing) for thing in things))
    assert parse(caption) == (arrangement, things)


def test_all_wordings_occur_about_equally_often(scenes: dict[str, list[Scene]]) -> None:
    for arrangement in CORNERS:
        ours = [scene for scene in scenes["train"] if scene.arrangement == arrangement]
        which = [composition.wordings(arrangement, scene.things).index(scene.caption) for scene in ours]
        counts = np.bincount(which)
        assert counts.min() > 0.8 * counts.mean()


@pytest.mark.parametrize("wrong", ["", "a pink two", "red two", "a red ten", "a red two above", "a red two, a one"])
def test_other_texts_are_not_captions(wrong: str) -> None:
    with pytest.raises(ValueError):
        parse(wrong)


def test_withheld_pairs_never_occur_in_training_and_do_occur_in_testing(scenes: dict[str, list[Scene]]) -> None:
    train, test = ({tuple(thing) for scene in found for thing in scene.things} for found in scenes.values())
    assert len(set(WITHHELD)) == 10 and set(WITHHELD) < set(PAIRS)
    assert train == set(PAIRS) - set(WITHHELD) and test == set(PAIRS)
    # Every colour and every digit is learned in other pairs.
    assert {colour for colour, _ in train} == set(COLOURS) and {digit for _, digit in train} == set(range(len(NUMBERS)))


def test_the_splits_share_no_image_of_a_digit_and_use_every_one(scenes: dict[str, list[Scene]]) -> None:
    train, test = ({image for scene in found for image in scene.images} for found in scenes.values())
    assert max(train) < composition.TRAIN_DIGITS <= min(test)
    assert len(train) == composition.TRAIN_DIGITS and len(test) == len(DIGITS.target) - composition.TRAIN_DIGITS


def test_objects_of_a_scene_are_independent_and_may_be_alike(scenes: dict[str, list[Scene]]) -> None:
    two = [scene.things for scene in scenes["train"] if len(scene.things) == 2]
    alike, same_colour = (np.mean([a == b for a, b in two]), np.mean([a.colour == b.colour for a, b in two]))
    assert 0.5 / 70 < alike < 2 / 70 and abs(same_colour - 1 / 8) < 0.02
    assert SIDE * SIDE == DIGITS.images[0].size
