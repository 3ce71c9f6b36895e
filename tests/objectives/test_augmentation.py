"""Laws of augmentations that a discriminator sees: closed forms, the numbers of an image alone, gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.objectives import adversarial
from archirf_jax.objectives.augmentation import KINDS, NUMBERS, augmented, color, cutout, translation

RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.uniform(-1, 1, size=(3, 16, 8, 3)), jnp.float32)
CHANCE = jnp.asarray(RANDOM.uniform(size=(3, NUMBERS)), jnp.float32)
SLIGHT = 1 - 1e-6  # the largest that is drawn, about


def chance(*values: float) -> jax.Array:
    return jnp.tile(jnp.asarray(values), (3, 1))


def test_brightness_adds_and_the_middle_of_all_numbers_changes_no_color() -> None:
    np.testing.assert_allclose(color(X, chance(0.5, 0.5, 0.5)), X, atol=1e-6)
    np.testing.assert_allclose(color(X, chance(0.9, 0.5, 0.5)), X + 0.4, atol=1e-6)


def test_without_saturation_images_are_grey_and_contrast_scales_around_the_mean() -> None:
    grey = color(X, chance(0.5, 0.0, 0.5))
    np.testing.assert_allclose(grey, np.broadcast_to(np.mean(X, axis=-1, keepdims=True), X.shape), atol=1e-6)
    found = color(X, chance(0.5, 0.5, 0.0))
    mean = np.mean(X, axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(found, mean + (X - mean) / 2, atol=1e-6)
    np.testing.assert_allclose(np.std(color(X, chance(0.5, 1.0, 0.5)) - grey), 2 * np.std(X - grey), rtol=1e-5)


@pytest.mark.parametrize(
    ("u", "v", "down", "right"), [(0.5, 0.5, 0, 0), (SLIGHT, 0.5, 2, 0), (0.0, SLIGHT, -2, 1), (0.25, 0.0, -1, -1)]
)
def test_translations_go_by_whole_pixels_up_to_an_eighth_and_leave_zeros(
    u: float, v: float, down: int, right: int
) -> None:
    expected = np.zeros_like(X)
    source = np.asarray(X)[:, max(-down, 0) : 16 - max(down, 0), max(-right, 0) : 8 - max(right, 0)]
    expected[:, max(down, 0) : 16 + min(down, 0), max(right, 0) : 8 + min(right, 0)] = source
    np.testing.assert_array_equal(translation(X, chance(u, v)), expected)


@pytest.mark.parametrize(("u", "v", "area"), [(0.5, 0.5, 8 * 4), (0.0, 0.5, 4 * 4), (SLIGHT, SLIGHT, 4 * 2)])
def test_a_quarter_of_the_image_is_cut_out_and_less_at_its_edges(u: float, v: float, area: int) -> None:
    found = np.asarray(cutout(X, chance(u, v)))
    assert np.all((found == 0).all(-1).sum((1, 2)) == area)
    assert np.array_equal(found[found != 0], np.asarray(X)[found != 0])


def test_every_pixel_is_cut_out_about_as_often_where_a_middle_may_lie() -> None:
    many = jnp.asarray(RANDOM.uniform(size=(4000, 2)), jnp.float32)
    cut = 1 - np.mean(cutout(jnp.ones((4000, 8, 8, 1)), many), axis=0)[..., 0]
    np.testing.assert_allclose(cut[2:-2, 2:-2], (4 / 9) ** 2, atol=0.03)  # 4 of 9 places of the middle, in each axis
    assert cut[0, 0] < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_changed_by_its_own_numbers_and_only_if_asked(kind: str) -> None:
    found = augmented(X, CHANCE, (kind,))
    other = augmented(X, CHANCE.at[1:].set(1 - CHANCE[1:]), (kind,))
    assert np.array_equal(augmented(X, CHANCE, ()), X)
    assert np.array_equal(found[0], other[0]) and np.all(np.any(found[1:] != other[1:], axis=(1, 2, 3)))
    np.testing.assert_allclose(augmented(X[1:2], CHANCE[1:2], (kind,)), found[1:2], atol=1e-6)


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in KINDS], tuple(KINDS)])
def test_gradients_are_finite_differences_and_a_penalty_of_slopes_passes(kinds: tuple[str, ...]) -> None:
    """Augmentations are affine in the image, so that a difference of any size is the slope."""
    weight = jnp.asarray(RANDOM.normal(size=X.shape), jnp.float32)
    step = jnp.asarray(RANDOM.normal(size=X.shape), jnp.float32)

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(weight * augmented(x, CHANCE, kinds), axis=(1, 2, 3))

    slope = jax.grad(lambda x: jnp.sum(loss(x)))(X)
    np.testing.assert_allclose(jnp.sum(slope * step, axis=(1, 2, 3)), loss(X + step) - loss(X), rtol=1e-3, atol=1e-3)

    def squared(x: jax.Array) -> jax.Array:
        return jnp.square(augmented(x, CHANCE, kinds))

    penalty = jax.grad(lambda x: jnp.sum(adversarial.r1(squared, x)))(X)
    assert np.all(np.isfinite(penalty)) and np.all(np.any(penalty, axis=(1, 2, 3)))
