"""Attention in parts is attention as a whole, and one CPU computes it so."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.models import attention

MASKS = {
    "none": {},
    "keys": {"mask": jnp.arange(64) < jnp.arange(2, 8)[:, None]},
    "keys of all": {"mask": jnp.arange(64)[None] < 3},
    "pairs": {"mask": jnp.arange(64) <= jnp.arange(257)[:, None] + jnp.arange(6)[:, None, None]},
    "pairs of all": {"mask": jnp.arange(64) <= jnp.arange(257)[None, :, None]},
    "lengths": {"key_lengths": jnp.arange(6) * 5},
}


@pytest.mark.parametrize("mask", MASKS)
def test_parts_are_the_whole_in_values_and_derivatives(mask: str) -> None:
    q, k, v, dq = (jax.random.normal(jax.random.key(i), (6, n, 2, 4)) for i, n in enumerate((257, 64, 64, 257)))
    given = [MASKS[mask].get(name) for name in ("mask", "key_lengths")]

    def results(attend: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, *given), q, k, v)
        return out, pull(dq), attend(q, k, v, *given), jax.jvp(lambda q: attend(q, k, v, *given), (q,), (dq,))

    def slope_of_the_gradient(attend: Any, *qkv: jax.Array) -> Any:
        return jax.jvp(lambda q: results(attend, q, *qkv[1:])[1], (qkv[0],), (dq,))

    for function in (results, slope_of_the_gradient)[: 1 if given[0] is not None else 2]:
        parts, whole = (
            jax.jit(function, static_argnums=0)(each, q, k, v) for each in (attention.in_parts, attention.plain)
        )
        for part, exact in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(part, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "tokens", "alone", "with_gradient"),
    [(8, 63, 1, 1), (8, 64, 1, 4), (6, 64, 1, 2), (3, 64, 1, 1), (8, 257, 2, 4), (8, 512, 1, 4)],
)
def test_one_cpu_computes_attention_in_parts(
    batch: int, tokens: int, alone: int, with_gradient: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts(function: Any) -> int:
        return str(jax.make_jaxpr(lambda x: function(x))(x)).count("= exp ")  # a new function, traced anew

    def attended(x: jax.Array) -> jax.Array:
        return jnp.sum(attention.attend(x, x, x))

    x = jnp.zeros((batch, tokens, 1, 4))
    assert jax.device_count() > 1
    assert parts(attended) == parts(jax.grad(attended)) == 1  # devices that share a batch do not cut it
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert (parts(attended), parts(jax.grad(attended))) == (alone, with_gradient)
