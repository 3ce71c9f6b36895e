"""Multiply-adds of a network, from what XLA says of its program; nothing is computed or allocated."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def shapes_of(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Any, ...]:
    """(parameters, x, t, y) of a batch of one image as shapes."""
    example = getattr(model, "example_condition", lambda shape: jnp.int32(0))(image_shape)
    y = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), example)
    x, t = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t, y)["params"], x, t, y


def gflops(model: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """Billions of multiply-adds of a forward pass of one image (H, W, C).

    One each, as Peebles & Xie 2022 count. Blocks must not be scanned: a loop's body is counted once.
    """
    params, *inputs = shapes_of(model, image_shape)
    program = jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs)).lower(params, *inputs)
    cost = program.cost_analysis()
    assert cost is not None, "XLA counts on every platform that this project runs on"
    return float(cost["flops"]) / 2e9


def parameters(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Trainable parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes_of(model, image_shape)[0])
    return sum(int(leaf.size) for path, leaf in leaves if not path[-1].key.startswith("frozen_"))
