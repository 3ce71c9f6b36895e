"""Laws of guidance on the network's answer: its value on all channels, its cost, its interval, and that 1 is none."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.processes import oracles
from archirf_jax.processes.base import ModelFn, Process
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import grids
from archirf_jax.samplers.denoisers import Network
from archirf_jax.samplers.guidance import ALWAYS, autoguidance, classifier_free
from archirf_jax.samplers.sample import sample
from archirf_jax.samplers.solvers.euler import Euler
from tests.samplers import exact

B = 3
X: Any = np.random.default_rng(0).normal(size=(B, 2, 2, 4)).astype(np.float32)
T: Any = np.asarray([10.0, 20.0, 30.0], np.float32)
Y: Any = np.asarray([1, 2, 3], np.int32)
NULL = np.int32(7)


def network(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
    """Depends on everything, differently in each channel, and learns a variance: (B, H, W, 8)."""
    return jnp.sin(jnp.concatenate([x, 2 * x], axis=-1) * y[:, None, None, None] + t[:, None, None, None] / 10)


def weak(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
    return 0.5 * network(x, t, y) + 0.1


CONDITIONAL, UNCONDITIONAL = (np.asarray(network(X, T, y)) for y in (Y, np.full(B, NULL)))
WEAK = np.asarray(weak(X, T, Y))


def moved(other: np.ndarray, scale: float) -> np.ndarray:
    """All channels of the image from another answer through the conditional one; the variance as that one says."""
    image = other[..., :4] + scale * (CONDITIONAL - other)[..., :4]
    return np.concatenate([image, CONDITIONAL[..., 4:]], axis=-1)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_guidance_moves_every_channel_of_the_image_and_leaves_the_variance(scale: float) -> None:
    guided = classifier_free(network, NULL, scale)(X, T, Y)
    np.testing.assert_allclose(guided, moved(UNCONDITIONAL, scale), atol=1e-5)
    guided = autoguidance(network, weak, scale)(X, T, Y)
    np.testing.assert_allclose(guided, moved(WEAK, scale), atol=1e-5)


def test_a_weaker_network_may_say_nothing_of_the_variance() -> None:
    def silent(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        return weak(x, t, y)[..., :4]

    guided = autoguidance(network, silent, 3.0)(X, T, Y)
    np.testing.assert_allclose(guided, moved(WEAK, 3.0), atol=1e-5)


def test_a_network_that_says_zero_is_guided_to_zero() -> None:
    """As every DiT does before its first step; there is no contrast to be pulled back then."""
    guided = classifier_free(lambda x, t, y: jnp.zeros_like(x), NULL, 3.0, ALWAYS, 0.7)(X, T, Y)
    np.testing.assert_array_equal(guided, np.zeros_like(X))


@pytest.mark.parametrize("scale", [1, 1.0])
def test_scale_one_is_the_network_itself(scale: float) -> None:
    for options in ((), ((0.0, 500.0),), ((0.0, 500.0), 0.7)):
        assert classifier_free(network, NULL, scale, *options) is network
        assert autoguidance(network, weak, scale, *options) is network


def test_conditions_may_be_trees_whose_null_has_no_batch_axis() -> None:
    random = np.random.default_rng(1)
    y = {"tokens": random.normal(size=(B, 5, 2)), "pooled": random.normal(size=(B, 4))}
    y = jax.tree.map(np.float32, y)
    null = {"tokens": np.full((5, 2), 0.25, np.float32), "pooled": np.zeros(4, np.float32)}

    def reads_trees(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        return x * jnp.sum(y["tokens"], axis=(1, 2))[:, None, None, None] + y["pooled"][:, None, None, :]

    nothing = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (B, *leaf.shape)), null)
    conditional, unconditional = reads_trees(X, T, y), reads_trees(X, T, nothing)
    guided = classifier_free(reads_trees, null, 2.0)(X, T, y)
    np.testing.assert_allclose(guided, 2 * conditional - unconditional, atol=1e-5)


# --- the interval


@pytest.mark.parametrize("guide", [classifier_free, autoguidance])
@pytest.mark.parametrize(
    ("interval", "on"),
    [
        ((12.0, 25.0), [False, True, False]),  # a batch of several times
        ((10.0, 20.0), [True, True, False]),  # both ends belong to it
        ((20.0, 30.0), [False, True, True]),
        ((10.0, 30.0), [True, True, True]),
        ((31.0, 99.0), [False, False, False]),
        ((20.0, 20.0), [False, True, False]),
    ],
)
def test_guidance_acts_on_the_examples_whose_times_lie_in_the_interval(guide: Any, interval: Any, on: Any) -> None:
    other = NULL if guide is classifier_free else weak
    everywhere, guided = (guide(network, other, 3.0, *options)(X, T, Y) for options in ((), (interval,)))
    expected = np.where(np.reshape(on, (B, 1, 1, 1)), everywhere, CONDITIONAL)
    np.testing.assert_allclose(guided, expected, atol=1e-5)
    assert np.min(np.max(np.abs(everywhere - CONDITIONAL), axis=(1, 2, 3))) > 0.5


def sizes(wrap: Any, steps: int) -> list[int]:
    """The batch size of each evaluation that sampling really makes, counted while it runs."""
    asked: list[int] = []

    def counted(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        jax.debug.callback(lambda _: asked.append(x.shape[0]), t[0])
        return 0.1 * x * y[:, None, None, None]

    denoise, start = Network(RectifiedFlow(), wrap(counted)), jnp.ones((B, 2, 2, 1))
    keys, grid = jax.random.split(jax.random.key(0), B), grids.make("uniform", denoise.process, steps)
    sample(keys, denoise, Y, (2, 2, 1), grid=grid, solver=Euler(), start=start).block_until_ready()
    jax.effects_barrier()
    return asked


@pytest.mark.parametrize(("scale", "size"), [(1.0, B), (0.0, 2 * B), (1.5, 2 * B)])
def test_a_step_costs_one_evaluation_of_the_batch_and_with_guidance_of_twice_the_batch(scale: float, size: int) -> None:
    assert sizes(lambda model_fn: classifier_free(model_fn, NULL, scale), steps=5) == [size] * 5


def test_outside_its_interval_guidance_costs_nothing() -> None:
    """Steps start at 1000, 800, 600, 400 and 200."""
    found = sizes(lambda model_fn: classifier_free(model_fn, NULL, 1.5, (400.0, 800.0)), steps=5)
    assert found == [B, 2 * B, 2 * B, 2 * B, B]


def test_autoguidance_costs_one_evaluation_of_each_network_inside_its_interval() -> None:
    found = sizes(lambda model_fn: autoguidance(model_fn, model_fn, 1.5, (400.0, 800.0)), steps=5)
    assert found == [B] * (1 + 2 + 2 + 2 + 1)


# --- the size of what comes out


@pytest.mark.parametrize("interval", [ALWAYS, (0.0, 99.0)])
@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
def test_rescaling_moves_the_deviation_of_each_answer_to_that_of_the_conditional(rescale: float, interval: Any) -> None:
    """Lin et al. 2023, Eq. 15 and 16: shares of the rescaled answer and of the answer."""
    plain = np.asarray(classifier_free(network, NULL, 5.0)(X, T, Y))[..., :4]
    guided = np.asarray(classifier_free(network, NULL, 5.0, interval, rescale)(X, T, Y))[..., :4]
    assert np.all(np.std(plain, axis=(1, 2, 3)) > 1.5 * np.std(CONDITIONAL[..., :4], axis=(1, 2, 3)))
    for one, before, conditional in zip(guided, plain, CONDITIONAL[..., :4], strict=True):
        rescaled = before * np.std(conditional) / np.std(before)
        np.testing.assert_allclose(one, rescale * rescaled + (1 - rescale) * before, atol=1e-4)
    if rescale == 1:
        np.testing.assert_allclose(
            np.std(guided[..., :4], (1, 2, 3)), np.std(CONDITIONAL[..., :4], (1, 2, 3)), rtol=1e-5
        )


def test_autoguidance_is_rescaled_too() -> None:
    guided = np.asarray(autoguidance(network, weak, 5.0, ALWAYS, 1.0)(X, T, Y))
    np.testing.assert_allclose(np.std(guided[..., :4], (1, 2, 3)), np.std(CONDITIONAL[..., :4], (1, 2, 3)), rtol=1e-5)


# --- what it means


def class_or_all(process: Process) -> ModelFn:
    """The perfect network of the first normal distribution for label 0, and of both for label 1."""
    one = oracles.network(process, oracles.Mixture(exact.DATA.means[:1], exact.STDS[:1], np.ones(1)))
    both = oracles.network(process, exact.DATA)
    return lambda x, t, y: jnp.where(y[:, None, None, None] == 0, one(x, t, y), both(x, t, y))


@pytest.mark.parametrize("process", exact.PROCESSES.values(), ids=exact.PROCESSES)
def test_the_guided_score_is_the_conditional_to_the_scale_over_the_unconditional(process: Process) -> None:
    """grad log [p(x | y)^s p(x)^(1 - s)] in closed form, whatever the network predicts."""
    scale, u = 2.5, np.random.default_rng(2).normal(size=(4, 2))
    with jax.enable_x64(True):
        t = np.linspace(0.2, 0.9, 4)
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        x = (alpha + sigma) * u
        guided = classifier_free(class_or_all(process), np.int32(1), scale)
        found = process.predict(guided, jnp.asarray(x.reshape(4, *exact.SHAPE)), jnp.asarray(t), jnp.zeros(4, int))
        of_class = -(x - alpha * exact.MEANS[0]) / (alpha**2 * exact.STDS[0] ** 2 + sigma**2)
        of_all = -np.concatenate([exact.denoise(x[i : i + 1], alpha[i], sigma[i])[1] for i in range(4)]) / sigma
        score = scale * of_class + (1 - scale) * of_all
    np.testing.assert_allclose(-np.asarray(found.eps).reshape(4, 2) / sigma, score, rtol=1e-7)
