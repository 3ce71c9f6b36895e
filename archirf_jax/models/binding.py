"""A Linen module and its parameters as a `ModelFn`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition, Extras, ModelFn, Params
from archirf_jax.errors import UserError
from archirf_jax.models import attention
from archirf_jax.models.layers import DIAGNOSTICS, EXTRAS, takes_second_time


def init(module: nn.Module, key: jax.Array, x: jax.Array, t: jax.Array, condition: Condition) -> Params:
    """Fresh parameters of a module, for inputs like these: x (B, ...), network times t (B,)."""

    def fresh(key: jax.Array, *inputs: Any) -> Params:
        return module.init(key, *inputs)["params"]

    # One program instead of a small one for each operation; inside another program it leaves no trace.
    return jax.jit(fresh, inline=True)(key, x, t, condition)


def bind(
    module: nn.Module, params: Params, *, dropout: jax.Array | None = None, higher_derivatives: bool = False
) -> ModelFn:
    """The module with its parameters: (x, t, condition, s=None) -> answer, what the module sows by name.

    Args:
        module: called (x, t, condition), and with s if its `__call__` has it.
        params: its parameters.
        dropout: the key that it drops units with; None drops none.
        higher_derivatives: choose attention that has forward-mode and second derivatives on every platform, as
            convolutions do; it is slower than flash attention.
    """
    second_time = takes_second_time(module)

    def model_fn(
        x: jax.Array, t: jax.Array, condition: Condition, *, s: jax.Array | None = None
    ) -> tuple[jax.Array, Extras]:
        more: dict[str, Any] = {"s": s} if second_time and s is not None else {}
        return call(module, params, x, t, condition, dropout=dropout, higher_derivatives=higher_derivatives, **more)

    return model_fn


def call(
    module: nn.Module,
    params: Params,
    *inputs: Any,
    method: str | None = None,
    dropout: jax.Array | None = None,
    higher_derivatives: bool = False,
    **more: Any,
) -> tuple[Any, Extras]:
    """(what a method of the module answers, what it sows by name).

    Args:
        module, params, dropout, higher_derivatives: as in `bind`.
        inputs, more: of the method.
        method: such as "encode"; None = the call itself.
    """
    rngs = None if dropout is None else {"dropout": dropout}
    with attention.using(attention.plain) if higher_derivatives else contextlib.nullcontext():
        answer, sown = module.apply(
            {"params": params}, *inputs, method=method, rngs=rngs, mutable=[EXTRAS, DIAGNOSTICS], **more
        )
    return answer, _extras(sown.get(EXTRAS, {})) | _largest(sown.get(DIAGNOSTICS, {}))


def _extras(sown: Any) -> Extras:
    found: Extras = {}
    for name, value in _by_name(sown):
        if name in found:
            raise UserError("model", message=f"sows {name!r} twice; give each of its extras a name of its own")
        found[name] = value
    return found


def _largest(sown: Any) -> Extras:
    """() each: the largest of all layers."""
    found: Extras = {}
    for name, value in _by_name(sown):
        found[name] = jnp.maximum(found.get(name, -jnp.inf), jnp.max(value))
    return found


def _by_name(sown: Any) -> Iterator[tuple[str, jax.Array]]:
    """What is sown, by its own name; Linen keeps each value in a tuple unless the module says otherwise."""
    for path, value in jax.tree_util.tree_leaves_with_path(sown):
        yield next(part.key for part in reversed(path) if isinstance(part, jax.tree_util.DictKey)), value
