"""Laws of structural similarity: the windows of the paper, one for equal images, finite slopes everywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.objectives import structural

ssim, ms_ssim = jax.jit(structural.ssim), jax.jit(structural.ms_ssim)


def images(height: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    smooth = np.cumsum(np.cumsum(random.normal(size=(2, height, width, 2)), axis=1), axis=2)
    return np.tanh(smooth / smooth.std()).astype(np.float32)


def by_windows(x: np.ndarray, y: np.ndarray, span: float) -> np.ndarray:
    """Wang et al. 2004, Eqs. 13 to 16, window by window, in float64."""
    grid = np.arange(11) - 5
    weight = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    first, second = (0.01 * span) ** 2, (0.03 * span) ** 2
    found = []
    for top, left in np.ndindex(x.shape[1] - 10, x.shape[2] - 10):
        a, b = (each[:, top : top + 11, left : left + 11].astype(np.float64) for each in (x, y))
        mean_a, mean_b = (np.einsum("bhwc,hw->bc", each, weight) for each in (a, b))
        var_a, var_b = (np.einsum("bhwc,hw->bc", e**2, weight) - m**2 for e, m in ((a, mean_a), (b, mean_b)))
        covariance = np.einsum("bhwc,hw->bc", a * b, weight) - mean_a * mean_b
        above = (2 * mean_a * mean_b + first) * (2 * covariance + second)
        found.append(above / ((mean_a**2 + mean_b**2 + first) * (var_a + var_b + second)))
    return np.mean(found, axis=(0, 2))


@pytest.mark.parametrize("span", [2.0, 255.0])
def test_the_windows_are_those_of_the_paper(span: float) -> None:
    x, y = images(14, 17), images(14, 17, seed=1)
    scale = span / 2
    np.testing.assert_allclose(ssim(scale * x, scale * y, span), by_windows(scale * x, scale * y, span), atol=2e-5)


@pytest.mark.parametrize("of", [ssim, ms_ssim])
@pytest.mark.parametrize("side", [3, 8, 24, 64])
def test_equal_images_are_one_and_noise_takes_likeness_away(of: object, side: int) -> None:
    assert callable(of)
    x = images(side, side)
    noise = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    levels = [float(of(x, x + scale * noise).mean()) for scale in (0.0, 0.05, 0.2, 0.8)]
    assert levels[0] == pytest.approx(1, abs=1e-5) and levels == sorted(levels, reverse=True) and levels[-1] < 0.9
    np.testing.assert_allclose(of(x, x + noise), of(x + noise, x), atol=1e-6)


def test_coarse_scales_see_through_fine_noise() -> None:
    x = images(64, 64)
    noisy = x + 0.3 * np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    assert float(ms_ssim(x, noisy).mean()) > float(ssim(x, noisy).mean()) + 0.1


@pytest.mark.parametrize("of", [ssim, ms_ssim])
def test_slopes_are_finite_for_flat_and_for_opposite_images(of: object) -> None:
    assert callable(of)
    x, slope = jnp.asarray(images(24, 24)), jax.jit(jax.grad(lambda a, b: jnp.sum(of(a, b))))
    for first, second in ((jnp.zeros_like(x), jnp.zeros_like(x)), (x, -x), (jnp.ones_like(x), -jnp.ones_like(x))):
        assert np.isfinite(slope(first, second)).all()
