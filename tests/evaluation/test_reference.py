"""What is known of real images: the same however they come in batches, kept under a name that changes with them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.evaluation import reference
from archirf_jax.evaluation.features import Extractor, Features, pixels
from archirf_jax.evaluation.reference import Sample, digest, gather, recall
from archirf_jax.evaluation.statistics import moments

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 1), np.uint8)
FLAT = IMAGES.reshape(23, 16) / 127.5 - 1


def in_batches(size: int, images: np.ndarray = IMAGES) -> list[np.ndarray]:
    return [images[first : first + size] for first in range(0, len(images), size)]


def test_the_digest_is_of_images_and_their_order_not_of_batches() -> None:
    assert len({digest(in_batches(size)) for size in (1, 5, 23, 100)}) == 1
    changed = IMAGES.copy()
    changed[20, 3, 3] ^= 1
    others = (changed, IMAGES[::-1], IMAGES[:22], IMAGES.reshape(23, 2, 8, 1))
    assert len({digest(in_batches(5, images)) for images in (IMAGES, *others)}) == 5


@pytest.mark.parametrize("size", [1, 5, 23, 64])
def test_gathered_is_all_of_them_and_the_first_features(size: int) -> None:
    found = gather(in_batches(size), pixels(), keep=7, size=size)
    np.testing.assert_allclose(found.features, FLAT[:7], atol=1e-6)
    expected = moments(FLAT)
    assert found.moments.images == 23 and found.log_p is None
    np.testing.assert_allclose(found.moments.mean, expected.mean, atol=1e-6)
    np.testing.assert_allclose(found.moments.scatter, expected.scatter, atol=1e-5)


def test_probabilities_are_gathered_too_and_one_shape_is_compiled() -> None:
    shapes = set()

    def extract(images: np.ndarray) -> Features:
        shapes.add(images.shape)
        flat = np.asarray(images, np.float32).reshape(len(images), -1)
        return Features(flat, flat[:, :2])

    found = gather(in_batches(5), Extractor("x", "x", extract), keep=100, size=5)
    np.testing.assert_array_equal(found.log_p, IMAGES.reshape(23, 16)[:, :2])
    assert shapes == {(5, 4, 4, 1)}


def test_no_images_are_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        gather([], pixels(), keep=1, size=1)


class Made:
    """Makes a sample, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Sample:
        self.times += 1
        return gather(in_batches(5), pixels(), keep=7, size=5)


def test_it_is_made_once_and_then_read(tmp_path: pathlib.Path) -> None:
    made = Made()
    first, second = (recall(tmp_path / "new", "a", pixels(), 7, made) for _ in range(2))
    assert made.times == 1
    np.testing.assert_array_equal(first.features, second.features)
    np.testing.assert_array_equal(first.moments.scatter, second.moments.scatter)
    assert (first.moments.images, first.features.dtype) == (second.moments.images, second.features.dtype)
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".npz"]


def test_it_is_made_again_for_other_images_features_or_numbers_and_when_it_is_damaged(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, other = Made(), Extractor("x", "other", pixels().extract)
    for data, extractor, keep in (("a", pixels(), 7), ("b", pixels(), 7), ("a", other, 7), ("a", pixels(), 8)):
        recall(tmp_path, data, extractor, keep, made)
    monkeypatch.setattr(reference, "VERSION", "0")
    recall(tmp_path, "a", pixels(), 7, made)
    assert made.times == 5 and len(list(tmp_path.iterdir())) == 5
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    recall(tmp_path, "a", pixels(), 7, made)
    recall(tmp_path, "a", pixels(), 7, made)
    assert made.times == 6


def test_features_of_unknown_identity_are_made_every_time(tmp_path: pathlib.Path) -> None:
    made = Made()
    for _ in range(2):
        recall(tmp_path, "a", Extractor("x", "", pixels().extract), 7, made)
    assert made.times == 2 and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_costs_time_alone(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    made = Made()
    for _ in range(2):
        assert recall(tmp_path / "file" / "x", "a", pixels(), 7, made).moments.images == 23
    assert made.times == 2
    assert sum("are not kept in" in record.getMessage() for record in caplog.records) == 2


WRONG: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "nan": (lambda x: np.where(x == x.max(), np.nan, x), "gave nan or infinity"),
    "too many": (lambda x: np.zeros((len(x), 20_000)), "gave 20000 numbers for an image; at most 8192"),
    "another number": (
        lambda x: x[:, : 2 + int(x[0, 0] == FLAT[0, 0])],
        "gave 3 numbers for one image and 2 for another",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_compared_is_refused(case: str) -> None:
    change, words = WRONG[case]

    def extract(images: np.ndarray) -> Features:
        return Features(change(np.asarray(images, float).reshape(len(images), -1) / 127.5 - 1))

    with pytest.raises(UserError, match=words) as caught:
        gather(in_batches(5), Extractor("x", "", extract), keep=100, size=5)
    assert caught.value.field == "features"
