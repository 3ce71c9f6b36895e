"""Laws of classifier-free guidance: its value on all channels, its cost, and that scale 1 is no guidance at all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import grids
from archirf_jax.samplers.guidance import classifier_free
from archirf_jax.samplers.sample import sample
from archirf_jax.samplers.solvers.euler import Euler

B = 3
X: Any = np.random.default_rng(0).normal(size=(B, 2, 2, 4)).astype(np.float32)
T: Any = np.asarray([10.0, 20.0, 30.0], np.float32)
Y: Any = np.asarray([1, 2, 3], np.int32)
NULL = np.int32(7)


def network(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
    """Depends on everything, differently in each channel, and learns a variance: (B, H, W, 8)."""
    return jnp.sin(jnp.concatenate([x, 2 * x], axis=-1) * y[:, None, None, None] + t[:, None, None, None])


@pytest.mark.parametrize("scale", [0.5, 1.5, 4.0])
def test_guidance_moves_every_channel_from_the_unconditional_through_the_conditional(scale: float) -> None:
    conditional = np.asarray(network(X, T, Y))
    unconditional = np.asarray(network(X, T, np.full(B, NULL)))
    guided = classifier_free(network, NULL, scale)(X, T, Y)
    np.testing.assert_allclose(guided, unconditional + scale * (conditional - unconditional), atol=1e-5)
    assert guided.shape == (B, 2, 2, 8)


def test_scale_zero_is_unconditional() -> None:
    guided = classifier_free(network, NULL, 0.0)(X, T, Y)
    np.testing.assert_allclose(guided, network(X, T, np.full(B, NULL)), atol=1e-6)


def test_scale_one_is_the_network_itself() -> None:
    for scale in (1, 1.0):
        assert classifier_free(network, NULL, scale) is network


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


def evaluations(scale: float, steps: int) -> list[int]:
    """The batch size of each evaluation that sampling with `scale` really makes, counted while it runs."""
    sizes: list[int] = []

    def counted(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        jax.debug.callback(lambda _: sizes.append(x.shape[0]), t[0])
        return 0.1 * x * y[:, None, None, None]

    guided = classifier_free(counted, NULL, scale)
    keys = jax.random.split(jax.random.key(0), B)
    sample(keys, RectifiedFlow(), guided, Y, (2, 2, 1), grid=grids.linspace(steps), solver=Euler()).block_until_ready()
    jax.effects_barrier()
    return sizes


@pytest.mark.parametrize(("scale", "size"), [(1.0, B), (0.0, 2 * B), (1.5, 2 * B)])
def test_a_step_costs_one_evaluation_of_the_batch_and_with_guidance_of_twice_the_batch(scale: float, size: int) -> None:
    assert evaluations(scale, steps=5) == [size] * 5
