"""Copies are equal, lie where the originals do, and stay when those are given away."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import sharding
from archirf_jax.training import copies


def test_copies_are_equal_and_lie_where_the_originals_do() -> None:
    mesh = sharding.make_mesh(2, 4)
    tree = {
        "cut": jax.device_put(jnp.arange(8 * 40_000.0).reshape(8, 40_000), sharding.of_batch(mesh)),
        "whole": jax.device_put(jnp.arange(5, dtype=jnp.int32), sharding.whole(mesh)),
        "half": jnp.linspace(0, 1, 7, dtype=jnp.bfloat16),
        "number": jnp.int32(3),
        "nothing": jnp.zeros((0, 4)),
        "numpy": np.arange(3),
    }
    made = copies.of_cpu(tree)
    assert made["numpy"] is tree["numpy"]
    assert made["whole"].sharding.device_set == {mesh.devices.flat[0]}  # each device has all of it: it is copied once
    tree["whole"] = tree["whole"].addressable_data(0)
    for name in tree.keys() - {"numpy"}:
        ours, theirs = made[name], tree[name]
        assert ours.dtype == theirs.dtype and ours.sharding == theirs.sharding
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
        for mine, other in zip(ours.addressable_shards, theirs.addressable_shards, strict=True):
            assert not mine.data.size or mine.data.unsafe_buffer_pointer() != other.data.unsafe_buffer_pointer()


def test_a_copy_stays_when_the_original_is_given_away_and_that_is_not_copied_again() -> None:
    given = jax.jit(lambda x: x + 1)(jnp.zeros(100_000))
    place = given.unsafe_buffer_pointer()
    copy = copies.of_cpu(given)
    seen = np.asarray(copy)  # as whoever writes it sees it
    after = jax.jit(lambda x: x * 5, donate_argnums=0)(given)
    assert given.is_deleted() and after.unsafe_buffer_pointer() == place
    np.testing.assert_array_equal(seen, 1)
    np.testing.assert_array_equal(after, 5)
