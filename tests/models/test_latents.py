"""Laws of latents: the normal distribution of an encoder's moments, and what a diffusion model sees of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.latents import LOG_VARIANCES, Autoencoder, Gaussian

RANDOM = np.random.default_rng(0)
MOMENTS = jnp.asarray(RANDOM.normal(size=(2, 3, 4, 6)), jnp.float32)


def test_the_first_half_of_moments_are_means_and_the_second_log_variances() -> None:
    found = Gaussian.of(MOMENTS)
    np.testing.assert_array_equal(found.mode(), MOMENTS[..., :3])
    np.testing.assert_array_equal(found.logvar, MOMENTS[..., 3:])


def test_log_variances_are_clipped_and_then_have_no_gradient() -> None:
    wide = jnp.asarray([[[[0.0, -100.0]]], [[[0.0, 100.0]]], [[[0.0, 1.0]]]])
    assert Gaussian.of(wide).logvar.ravel().tolist() == [*LOG_VARIANCES, 1.0]
    slopes = jax.grad(lambda moments: jnp.sum(Gaussian.of(moments).logvar))(wide)
    assert slopes[..., 1].ravel().tolist() == [0.0, 0.0, 1.0]


def test_samples_have_the_mean_and_the_variance_of_the_distribution() -> None:
    found = Gaussian.of(MOMENTS)
    samples = found.sample(jax.random.normal(jax.random.key(0), (20_000, *found.mean.shape)))
    spread = np.exp(0.5 * np.asarray(found.logvar))
    np.testing.assert_allclose(np.mean(samples, axis=0), found.mean, atol=5 * np.max(spread) / 20_000**0.5)
    np.testing.assert_allclose(np.std(samples, axis=0) / spread, 1, atol=0.03)
    np.testing.assert_array_equal(found.sample(jnp.zeros_like(found.mean)), found.mode())


def test_the_divergence_is_that_of_its_definition_and_0_for_a_standard_normal() -> None:
    """E[log q - log p] over samples of q."""
    found = Gaussian.of(0.5 * MOMENTS)
    eps = jax.random.normal(jax.random.key(1), (50_000, *found.mean.shape))
    log_q = -0.5 * (eps**2 + found.logvar)
    log_p = -0.5 * found.sample(eps) ** 2
    np.testing.assert_allclose(np.mean(np.sum(log_q - log_p, axis=(2, 3, 4)), axis=0), found.kl(), rtol=0.02)
    assert np.all(Gaussian.of(jnp.zeros((2, 1, 1, 4))).kl() == 0) and np.all(found.kl() > 0)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(scaling_factor=1.5305, shift_factor=0.0609),
        dict(scaling_factor=0.5, latents_mean=(1.0, -2.0), latents_std=(3.0, 0.25)),
        dict(latents_mean=(1.0, -2.0)),
    ],
)
def test_what_a_diffusion_model_sees_is_turned_back(fields: dict[str, Any]) -> None:
    model, z = Autoencoder(latent_channels=2, **fields), RANDOM.normal(size=(2, 3, 4, 2)).astype(np.float32)
    mean, std = (
        np.asarray(fields.get(f"latents_{name}", (default,) * 2)) for name, default in (("mean", 0), ("std", 1))
    )
    expected = (z - fields.get("shift_factor", 0) - mean) / std * fields.get("scaling_factor", 1)
    np.testing.assert_allclose(model.normalized(z), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.denormalized(model.normalized(z)), z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (dict(latents_mean=(0.0,)), "model.latents_mean"),
        (dict(latents_std=(1.0, 0.0)), "model.latents_std"),
        (dict(scaling_factor=0.0), "model.scaling_factor"),
    ],
)
def test_statistics_that_cannot_be_turned_back_are_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        Autoencoder(latent_channels=2, **fields).normalized(jnp.zeros((1, 1, 1, 2)))
    assert caught.value.field == field
