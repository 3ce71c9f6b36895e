"""A loop that computes what is the same at every step once: the same numbers, and nothing left to do in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.samplers import invariants

STEPS, LARGE = 4, 1000
W = jax.random.normal(jax.random.key(0), (8, 8)) / 3
LAYERS = jax.random.normal(jax.random.key(1), (3, 8, 8)) / 3
X = jax.random.normal(jax.random.key(2), (2, 8))

Body = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def called(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
    return jax.jit(lambda x, w: jnp.tanh(x @ jnp.exp(w)))(x, w) + t


def called_often(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
    block = jax.jit(lambda x, w: jnp.tanh(x @ jnp.exp(w)))
    for layer in layers:
        x = block(x, layer)
    return x * t


def checkpointed(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
    return jax.checkpoint(lambda x, w: jnp.tanh(x @ jnp.exp(w) + t))(x, w)


def branched(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
    return jax.lax.cond(t > 0.4, lambda x: jnp.tanh(x @ jnp.exp(w)), lambda x: x - jnp.exp(w)[0], x)


def layered(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
    """A loop over layers, in which something depends on a layer, on a constant, and on both."""

    def layer(x: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.tanh(x @ jnp.exp(own) + jnp.exp(w)[0] + (w @ jnp.exp(own + w))[0])
        return x, x.sum()

    x, sums = jax.lax.scan(layer, x, layers)
    return x + t * sums.sum()


def backwards(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, own: (jnp.tanh(x @ jnp.exp(own)) + t, None), x, layers, reverse=True)[0]


def repeated(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ jnp.exp(w) + i * t), x)


def nested(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
    def layer(x: jax.Array, own: jax.Array) -> tuple[jax.Array, None]:
        inner = jax.jit(lambda x, own: jax.checkpoint(lambda x: jnp.tanh(x @ jnp.exp(own) @ jnp.exp(w)))(x))
        return inner(x, own), None

    return jax.lax.cond(t < 0.7, lambda x: jax.lax.scan(layer, x, layers)[0], lambda x: x @ jnp.exp(w), x)


def unchanged(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
    return jnp.exp(w[:2])


BODIES = (called, called_often, checkpointed, branched, layered, backwards, repeated, nested, unchanged)


def run(body: Body, scan: Any) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(x, w, layers) -> the last x and all on the way."""

    def whole(x: jax.Array, w: jax.Array, layers: jax.Array) -> Any:
        def step(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = body(x, t, w, layers)
            return x, x

        return scan(step, x, jnp.arange(STEPS) / STEPS)

    return whole


def equations(jaxpr: Any) -> Iterator[Any]:
    """All of a jaxpr, those inside others too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for each in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(each, "jaxpr", each)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def loop(fn: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """The jaxpr of a function and its outermost loop of STEPS steps."""
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    (found,) = (eqn for eqn in equations(jaxpr) if eqn.primitive.name == "scan" and eqn.params["length"] == STEPS)
    return jaxpr, found


def exponentials(jaxpr: Any) -> int:
    return sum(eqn.primitive.name == "exp" for eqn in equations(jaxpr))


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_it_gives_what_the_plain_loop_gives(body: Body) -> None:
    """Values bit for bit, and derivatives by everything."""
    plain, moved = run(body, jax.lax.scan), run(body, invariants.scan)
    for one, other in zip(jax.jit(plain)(X, W, LAYERS), jax.jit(moved)(X, W, LAYERS), strict=True):
        np.testing.assert_array_equal(one, other)

    def slopes(fn: Any) -> Any:
        return jax.jit(jax.grad(lambda *args: jnp.sum(jnp.sin(fn(*args)[1])), argnums=(0, 1, 2)))(X, W, LAYERS)

    for one, other in zip(slopes(plain), slopes(moved), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_nothing_in_it_depends_on_constants_alone(body: Body) -> None:
    """All exponentials are of weights; before the loop each is taken once, or once for all layers."""
    _, plain = loop(run(body, jax.lax.scan), X, W, LAYERS)
    assert exponentials(plain.params["jaxpr"].jaxpr) > 0
    whole, moved = loop(run(body, invariants.scan), X, W, LAYERS)
    assert exponentials(moved.params["jaxpr"].jaxpr) == 0
    assert exponentials(whole) == {"called_often": 3, "layered": 3, "nested": 2}.get(body.__name__, 1)


def test_what_is_small_is_not_made_large_before() -> None:
    """A bias that is broadcast, and what is made of it, would be read at every step instead of made."""

    def body(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
        bias = jnp.exp(w[0])
        return jnp.sum(jnp.tile(bias, (LARGE, 1)) * x[0] * t, axis=0, keepdims=True) + x

    _, found = loop(run(body, invariants.scan), X, W, LAYERS)
    assert max(variable.aval.size for variable in found.invars) < LARGE
    assert exponentials(found.params["jaxpr"].jaxpr) == 0


def test_other_effects_are_left_at_their_steps() -> None:
    seen: list[float] = []

    def body(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
        jax.debug.callback(lambda value: seen.append(float(value)), w[0, 0])
        return x + t

    jax.block_until_ready(jax.jit(run(body, invariants.scan))(X, W, LAYERS))
    jax.effects_barrier()
    assert seen == [float(W[0, 0])] * STEPS


def test_weights_that_are_gathered_are_so_at_every_step() -> None:
    """Devices that share weights have not the memory for all of them."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("fsdp",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def body(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
        gathered = jax.jit(lambda w: jax.lax.with_sharding_constraint(w, whole))
        return x @ jnp.exp(gathered(w)) + t

    _, found = loop(run(body, invariants.scan), X, W, LAYERS)
    inside = found.params["jaxpr"].jaxpr
    assert exponentials(inside) == 1 and any(eqn.primitive.name == invariants.GATHERING for eqn in equations(inside))


def test_it_needs_no_jit_around_it() -> None:
    plain, moved = (run(layered, scan)(X, W, LAYERS) for scan in (jax.lax.scan, invariants.scan))
    for one, other in zip(plain, moved, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_random_numbers_of_a_fixed_key_stay_the_same() -> None:
    def body(x: jax.Array, t: jax.Array, w: jax.Array, layers: jax.Array) -> jax.Array:
        key = jax.random.key(0)
        return x + t * jax.random.normal(key, x.shape) + jax.random.normal(jax.random.fold_in(key, (4 * t).astype(int)))

    for one, other in zip(
        jax.jit(run(body, invariants.scan))(X, W, LAYERS), jax.jit(run(body, jax.lax.scan))(X, W, LAYERS), strict=True
    ):
        np.testing.assert_array_equal(one, other)
