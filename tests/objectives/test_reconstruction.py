"""Laws of what autoencoders are trained on, on images and latents alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.models.bounded_autoencoder import bounded
from archirf_jax.objectives.reconstruction import Reconstruction
from archirf_jax.objectives.structural import ms_ssim

IMAGES = jnp.tanh(jax.random.normal(jax.random.key(0), (3, 16, 16, 2)))
MADE = IMAGES + 0.1 * jax.random.normal(jax.random.key(1), IMAGES.shape)


def test_a_distance_is_the_weighted_sum_of_its_kinds() -> None:
    loss = Reconstruction(l1_weight=2.0, l2_weight=3.0, ms_ssim_weight=0.5, lpips_weight=0.25)
    error = np.asarray(MADE - IMAGES)
    expected = 2 * np.abs(error).mean(axis=(1, 2, 3)) + 3 * (error**2).mean(axis=(1, 2, 3))
    expected = expected + 0.5 * (1 - ms_ssim(MADE, IMAGES)) + 0.25 * jnp.asarray([1.0, 2.0, 3.0])
    found, reported = loss.distance(MADE, IMAGES, lambda made, images: jnp.asarray([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    psnr = np.mean(10 * np.log10(4 / (error**2).mean(axis=(1, 2, 3))))
    assert float(reported["psnr"][0]) == pytest.approx(psnr, rel=1e-5)
    assert {"l1", "l2", "ms_ssim", "lpips"} < reported.keys()


def test_what_has_no_weight_is_not_computed() -> None:
    def never(made: jax.Array, images: jax.Array) -> jax.Array:
        raise AssertionError

    found, reported = Reconstruction(l1_weight=0.0, l2_weight=1.0).distance(MADE, IMAGES, never)
    assert reported.keys() == {"l2", "psnr"} and np.all(found > 0)


def test_the_divergence_weighs_as_in_a_sum_over_pixels() -> None:
    """Rombach et al. 2022: the loss of a sum over pixels has 1e-6 times the sum over latents."""
    extras = {"kl": jnp.asarray([512.0, 1024.0])}
    total, _ = Reconstruction(kl_weight=1e-6).of_latents(jnp.zeros((2, 2, 2, 4)), extras, numbers=512, coupled=True)
    np.testing.assert_allclose(total, [1e-6, 2e-6], rtol=1e-6)


@pytest.mark.parametrize("measured", ["before", "after"])
def test_each_channel_is_pulled_to_its_spread_and_to_mean_zero(measured: str) -> None:
    loss = Reconstruction(std_weight=1.0, mean_weight=1.0, std_target=0.5, std_measured=measured)
    z = jax.random.normal(jax.random.key(2), (8, 4, 4, 3)) * jnp.asarray([0.1, 0.6, 3.0]) + jnp.asarray(
        [0.4, 0.0, -1.0]
    )

    def cost(z: jax.Array) -> jax.Array:
        after = bounded(z, "clip")
        return jnp.mean(loss.of_latents(after, {"unbounded": z}, 1, coupled=True)[0])

    def lower(z: jax.Array, _: None) -> tuple[jax.Array, None]:
        return z - 200.0 * jax.grad(cost)(z), None

    before, after = z, jax.lax.scan(lower, z, None, length=400)[0]
    seen = [each if measured == "before" else jnp.clip(each, -1, 1) for each in (before, after)]
    off = [float(jnp.max(jnp.abs(jnp.std(each, axis=(0, 1, 2)) - 0.5))) for each in seen]
    assert off[1] < 0.02 < off[0] and float(jnp.max(jnp.abs(jnp.mean(seen[1], axis=(0, 1, 2))))) < 0.02
    alone = loss.of_latents(z, {"unbounded": z}, 1, coupled=False)[0]
    assert not np.any(alone)  # of single images there is no spread over the batch


def test_what_couples_examples_says_so() -> None:
    assert not Reconstruction().couples_examples
    assert Reconstruction(std_weight=0.1).couples_examples and Reconstruction(mean_weight=0.1).couples_examples
    patches = {"name": "patchgan"}
    assert Reconstruction(adversarial_weight=0.1, discriminator=patches).couples_examples
    assert not Reconstruction(adversarial_weight=0.1, discriminator=patches, adaptive=False).couples_examples
