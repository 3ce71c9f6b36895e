"""Laws of the usage of codes and of what takes the place of dead ones."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.objectives.dead_codes import replacements, usage_after

RANDOM = np.random.default_rng(0)
LATENTS = jnp.asarray(RANDOM.normal(size=(2, 2, 3, 4)), jnp.float32)
LOTTERY = jnp.asarray(RANDOM.uniform(size=(2, 2, 3)), jnp.float32)


def test_usage_keeps_its_mean_of_1_and_goes_to_the_share_of_each_code() -> None:
    codes, usage = jnp.asarray([[0, 0], [0, 2]]), jnp.ones(4)
    np.testing.assert_allclose(usage_after(usage, codes, 0.75), 0.75 + 0.25 * np.asarray([3, 0, 1, 0]))
    for _ in range(60):
        usage = usage_after(usage, codes, 0.75)
        assert float(jnp.mean(usage)) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(usage, [3, 0, 1, 0], atol=1e-5)


def test_dead_codes_get_different_latents_while_there_are_enough() -> None:
    dead = jnp.asarray([False, True] * 10)
    found = np.asarray(replacements(dead, LATENTS, LOTTERY))
    flat = np.asarray(LATENTS).reshape(-1, 4)
    chosen = [int(np.flatnonzero((flat == row).all(-1))[0]) for row in found[np.asarray(dead)]]
    assert len(set(chosen)) == 10
    assert chosen == np.argsort(np.ravel(LOTTERY))[:10].tolist()
    every = np.asarray(replacements(jnp.ones(20, bool), LATENTS, LOTTERY))
    assert len(np.unique(every, axis=0)) == 12 and np.array_equal(every[:8], every[12:])
