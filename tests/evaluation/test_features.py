"""What images are compared by, and that it changes its name when it changes."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.evaluation import features
from archirf_jax.evaluation.inception import Inception
from archirf_jax.interop import inception
from tests.golden.cases import load

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "inception_fid.npz"
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)


def test_pixels_of_small_images_are_themselves() -> None:
    seen = features.pixels().extract(jnp.asarray(IMAGES))
    np.testing.assert_allclose(seen.features, IMAGES.reshape(3, 64) / 127.5 - 1, atol=1e-6)
    assert seen.log_p is None


def test_pixels_of_large_images_are_averaged() -> None:
    """What changes faster than the 32 pixels can show is gone; what changes slowly stays."""
    rows = np.arange(128)
    checkers = ((rows[:, None] + rows) % 2 * 255).astype(np.uint8)
    halves = np.where(rows[:, None] < 64, 255, 0).astype(np.uint8) * np.ones((1, 128), np.uint8)
    images = np.stack([checkers, halves])[..., None].repeat(3, axis=-1)
    seen = np.asarray(features.pixels().extract(jnp.asarray(images)).features).reshape(2, 32, 32, 3)
    assert seen.shape[1:] == (32, 32, 3)
    assert np.max(np.abs(seen[0, 1:-1, 1:-1])) < 0.05
    np.testing.assert_allclose(seen[1, :15], 1, atol=1e-5)
    np.testing.assert_allclose(seen[1, 17:], -1, atol=1e-5)


def doubled(params: Any, images: jax.Array) -> jax.Array:
    return jnp.stack([params * images, 3 * params * images], axis=-1)[:, :, :, 0]


def test_a_classifiers_map_is_averaged_over_positions() -> None:
    extractor = features.classifier(
        "x", "", jnp.float32(2), doubled, lambda params, x: jax.nn.log_softmax(x[:, 0, :, 0])
    )
    seen = extractor.extract(jnp.asarray(IMAGES))
    means = (IMAGES / 127.5 - 1).mean(axis=(1, 2))
    np.testing.assert_allclose(seen.features, np.concatenate([2 * means, 6 * means], axis=1), atol=1e-5)
    np.testing.assert_allclose(np.exp(seen.log_p).sum(axis=1), 1, rtol=1e-5)
    assert extractor.labelled


def test_another_network_has_another_identity_and_the_same_one_the_same() -> None:
    def identity(value: float, about: str = "8 heads") -> str:
        return features.classifier("x", about, {"a": np.float32(value)}, doubled, doubled).identity

    assert identity(1) == identity(1) != identity(2) and identity(1) != identity(1, "4 heads")
    assert features.digest({"a": np.zeros(2)}) != features.digest({"b": np.zeros(2)})


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 2, 6)])
def test_features_of_a_file_are_averaged_over_all_axes_but_the_last(shape: tuple[int, ...]) -> None:
    numbers = np.random.default_rng(1).normal(size=(3, *shape))
    given = []

    def given_features(images: np.ndarray) -> np.ndarray:
        given.append(images)
        return numbers

    seen = features.python_file("x.py", given_features).extract(IMAGES)
    np.testing.assert_allclose(seen.features, numbers.reshape(3, -1, 6).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(given[0], IMAGES / 127.5 - 1, atol=1e-6)
    assert given[0].dtype == np.float32


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((2, 4)), np.zeros((3, 0))])
def test_features_of_another_shape_or_without_numbers_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(UserError) as caught:
        features.python_file("x.py", lambda images: wrong).extract(IMAGES)
    assert caught.value.field == "features"


def test_inception_has_the_published_number_of_parameters_and_ignores_what_training_left() -> None:
    """23,834,568 for 1,000 classes without the auxiliary head (Szegedy et al. 2016), here for eight more."""
    state = load(GOLDEN).params
    more = {"AuxLogits.fc.weight": np.zeros(2), "Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros(())}
    params = inception.load(Inception(), state | more, "features")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    trained = [leaf.size for path, leaf in leaves if path[-1].key not in ("mean", "variance")]
    assert sum(trained) == 23_834_568 + 8 * 2049
    with pytest.raises(UserError, match=r"1 missing: fc.bias") as caught:
        inception.load(Inception(), {name: value for name, value in state.items() if name != "fc.bias"}, "features")
    assert caught.value.field == "features"


@pytest.mark.slow
def test_inception_sees_grey_images_as_grey_rgb_and_gives_classes_without_the_bias() -> None:
    case = load(GOLDEN)
    extractor = features.inception(inception.load(Inception(), case.params, "features"))
    images = jnp.asarray(case.inputs["images"].transpose(0, 2, 3, 1))
    colour = extractor.extract(images)
    np.testing.assert_allclose(colour.features, case.outputs["pool3"], rtol=1e-4, atol=1e-5)
    logits = case.outputs["logits"] - case.params["fc.bias"]
    np.testing.assert_allclose(colour.log_p, jax.nn.log_softmax(logits), rtol=1e-3, atol=1e-3)
    grey = images[..., :1]
    wide = extractor.extract(grey.repeat(3, -1)).features  # of the shape of colour: one program for both
    np.testing.assert_allclose(extractor.extract(grey).features, wide, rtol=1e-5)
