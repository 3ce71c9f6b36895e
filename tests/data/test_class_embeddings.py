"""The table of a set is the mean of the features of each class, whatever batches they come in."""

from __future__ import annotations

import numpy as np
import pytest

from archirf_jax import data
from archirf_jax.data import class_embeddings
from archirf_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 1), np.uint8)
LABELS = np.arange(11) % 3


def table(dataset: data.Dataset, batch_size: int, shape: tuple[int, ...] = (4, 4)) -> np.ndarray:
    def features(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.float32 and images.min() >= -1 and images.max() <= 1
        assert len(images) == min(batch_size, 11)
        return images.reshape(len(images), *shape)

    return class_embeddings.class_means(dataset, class_embeddings.parts(dataset, batch_size), features)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_the_table_is_the_mean_of_each_class(batch_size: int) -> None:
    pixels = (IMAGES[..., 0].astype(np.float64) - 127.5) / 127.5
    expected = np.stack([pixels[LABELS == label].mean(0) for label in range(3)])
    found = table(data.from_arrays(IMAGES, LABELS), batch_size)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32


def test_without_labels_or_with_features_of_another_shape_there_is_no_table() -> None:
    for field, dataset, shape in (
        ("data.label_key", data.from_arrays(IMAGES), (4, 4)),
        ("data.split", data.from_arrays(IMAGES, LABELS, ["a", "b", "c", "d"]), (4, 4)),
        ("features", data.from_arrays(IMAGES, LABELS), (16,)),
    ):
        with pytest.raises(UserError) as caught:
            table(dataset, 4, shape)
        assert caught.value.field == field


def test_an_image_whose_features_are_not_finite_is_named() -> None:
    dataset = data.from_arrays(IMAGES, LABELS)

    def features(images: np.ndarray) -> np.ndarray:
        return np.where(images == images.max(), np.nan, images)

    with pytest.raises(UserError) as caught:
        class_embeddings.class_means(dataset, class_embeddings.parts(dataset, 4), features)
    assert caught.value.field == "features" and "image 0 of the arrays" in str(caught.value)
