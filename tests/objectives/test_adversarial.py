"""Laws of adversarial losses: their minima, slopes, the penalty of slopes, and the weight between two losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.objectives import adversarial

RANDOM = np.random.default_rng(0)
REAL, FAKE = (jnp.asarray(RANDOM.normal(size=(4, 2, 2, 1)), jnp.float32) for _ in range(2))


@pytest.mark.parametrize("kind", adversarial.DISCRIMINATOR_LOSSES)
def test_each_image_has_its_own_loss_and_confidence_lowers_it(kind: str) -> None:
    loss = adversarial.DISCRIMINATOR_LOSSES[kind]
    found = loss(REAL, FAKE)
    assert found.shape == (4,)
    np.testing.assert_allclose(loss(REAL[1:2], FAKE[1:2]), found[1:2], rtol=1e-6)
    assert np.all(loss(REAL + 1, FAKE - 1) < found) and np.all(loss(REAL + 100, FAKE - 100) < 1e-6)


def test_a_hinge_has_no_slope_beyond_its_margin_and_logits_of_0_cost_1_or_log_2() -> None:
    slopes = jax.grad(lambda real: jnp.sum(adversarial.hinge(real, FAKE)))(jnp.full((1, 1, 1, 1), 1.5))
    assert slopes.ravel().tolist() == [0.0]
    zero = jnp.zeros((1, 3, 3, 1))
    assert adversarial.hinge(zero, zero).tolist() == [1.0]
    np.testing.assert_allclose(adversarial.logistic(zero, zero), np.log(2), rtol=1e-6)


def test_the_generator_gains_by_logits_of_its_images() -> None:
    np.testing.assert_allclose(adversarial.generator(FAKE), -np.mean(FAKE, axis=(1, 2, 3)), rtol=1e-6)


def test_the_penalty_of_slopes_is_the_closed_form_of_a_linear_and_of_a_square_function() -> None:
    images, weight = RANDOM.normal(size=(3, 2, 2, 1)).astype(np.float32), RANDOM.normal(size=(2, 2, 1))
    found = adversarial.r1(lambda x: jnp.sum(x * weight, axis=(1, 2, 3)), images)
    np.testing.assert_allclose(found, np.full(3, np.sum(weight**2)), rtol=1e-5)
    found = adversarial.r1(lambda x: x**2, images)
    np.testing.assert_allclose(found, np.sum(4 * images**2, axis=(1, 2, 3)), rtol=1e-5)


def test_the_penalty_has_a_gradient_by_the_discriminators_parameters() -> None:
    """Of |w|^2 it is 2 w."""
    images, w = jnp.ones((1, 2, 2, 1)), jnp.asarray(RANDOM.normal(size=(2, 2, 1)), jnp.float32)
    slope = jax.grad(lambda w: jnp.mean(adversarial.r1(lambda x: jnp.sum(x * w, axis=(1, 2, 3)), images)))(w)
    np.testing.assert_allclose(slope, 2 * w, rtol=1e-5)


def test_the_adaptive_weight_makes_both_losses_pull_alike_and_is_a_constant() -> None:
    first, second = {"kernel": REAL}, {"kernel": FAKE}
    weight = adversarial.adaptive_weight(first, second)
    lengths = [np.linalg.norm(np.ravel(x)) for x in (REAL, FAKE)]
    np.testing.assert_allclose(weight * lengths[1], lengths[0], rtol=1e-3)
    np.testing.assert_allclose(adversarial.adaptive_weight(first, second, 0.5), 0.5 * weight, rtol=1e-6)
    assert np.all(jax.grad(lambda scale: adversarial.adaptive_weight({"k": scale * REAL}, second))(2.0) == 0)


def test_without_a_slope_of_the_generators_loss_the_weight_stays_bounded() -> None:
    none = {"kernel": jnp.zeros_like(FAKE)}
    assert adversarial.adaptive_weight({"kernel": 1e6 * REAL}, none, 2.0) == 2 * adversarial.LARGEST
    assert adversarial.adaptive_weight(none, none) == 0
