"""Laws of what stands beside a text: the size of an image, a small image with noise, an image with a hole."""

from __future__ import annotations

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.conditioners import inpainting, low_res, size
from archirf_jax.first_stages.image import Image

DATA = types.SimpleNamespace(image_size=64)
KEYS = jax.random.split(jax.random.key(0), 2)


def test_a_size_is_that_of_the_images_unless_another_is_given() -> None:
    usual = size.build(DATA)
    np.testing.assert_array_equal(usual({}, {}, KEYS)["size"], [[64, 64, 0, 0, 64, 64]] * 2)
    own = size.build(DATA, original=(100, 80), crop=(3, 5), target=(32, 48))
    np.testing.assert_array_equal(own({}, {}, KEYS)["size"], [[100, 80, 3, 5, 32, 48]] * 2)
    given = jnp.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(usual({}, {"size": given}, KEYS)["size"], given)
    assert usual.null({}) == {}
    np.testing.assert_array_equal(own.at_size(40, 80)({}, {}, KEYS)["size"], [[40, 80, 3, 5, 40, 80]] * 2)


def test_a_score_takes_the_place_of_the_target_and_no_condition_has_another() -> None:
    refiner = size.build(DATA, score=6.0, null_score=2.5)
    np.testing.assert_array_equal(refiner({}, {}, KEYS)["size"][0], [64, 64, 0, 0, 6])
    np.testing.assert_array_equal(refiner.null({})["size"], [64, 64, 0, 0, 2.5])
    wide = refiner.at_size(32, 96)
    np.testing.assert_array_equal(
        [wide({}, {}, KEYS)["size"][0], wide.null({})["size"]], [[32, 96, 0, 0, s] for s in (6, 2.5)]
    )


@pytest.mark.parametrize("level", [0, 20, 349])
def test_a_small_image_has_the_noise_of_its_level(level: int) -> None:
    made = low_res.build(noise_level=level, schedule="scaled_linear", beta_start=1e-4, beta_end=0.02)
    image = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    found = made({}, {"low_res": image}, KEYS)
    betas = np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2
    abar = np.prod(1 - betas[: level + 1])
    noise = (found["low_res"] - abar**0.5 * image) / (1 - abar) ** 0.5
    assert abs(float(jnp.std(noise)) - 1) < 0.03 and np.any(noise[0] != noise[1])
    np.testing.assert_array_equal(found["noise_level"], [level, level])
    again = made({}, {"low_res": image[1:], "noise_level": jnp.asarray([level])}, KEYS[1:])
    np.testing.assert_allclose(again["low_res"], found["low_res"][1:], atol=1e-6)  # whatever stands beside it
    assert made.null({}) == {}


class Halved(Image):
    """A first stage that averages blocks of 2x2 pixels."""

    def encode(self, frozen: Any, batch: Any, keys: Any) -> Any:
        """(B, H, W, C) -> (B, H / 2, W / 2, C)."""
        image = batch["image"]
        return image.reshape(len(image), image.shape[1] // 2, 2, image.shape[2] // 2, 2, -1).mean(axis=(2, 4))


def test_a_hole_is_grey_and_stands_before_what_is_around_it() -> None:
    image = jax.random.uniform(jax.random.key(2), (2, 4, 6, 3), minval=0.5)
    hole = jnp.zeros((2, 4, 6, 1)).at[0, :2, :2].set(1).at[0, 1, 3].set(1).at[1, 2, 4].set(1)
    made = inpainting.build(Halved())
    found = made({}, {"image": image, "hole": hole}, KEYS)["inpaint"]
    assert found.shape == (2, 2, 3, 4) and made.null({}) == {}
    first = [[[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 1]]]  # pixel of each block
    np.testing.assert_array_equal(found[..., 0], first)
    known = Halved().encode({}, {"image": image * (1 - hole)}, KEYS)
    np.testing.assert_allclose(found[..., 1:], known, atol=1e-6)
    assert not np.any(found[0, 0, 0, 1:]) and np.all(found[1, 0, 0, 1:] > 0.5)
