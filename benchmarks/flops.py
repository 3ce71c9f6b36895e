"""Parameters and multiply-adds of a network; nothing is computed or allocated."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition
from archirf_jax.models import binding
from archirf_jax.training import flops


def shapes_of(model: nn.Module, image_shape: tuple[int, ...], condition: Condition, batch: int = 1) -> tuple[Any, ...]:
    """(parameters, x, t, condition) of a batch as shapes; `condition` has a leading axis of any length."""
    of_batch = {name: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype) for name, leaf in condition.items()}
    inputs = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.float32)
    params = jax.eval_shape(lambda *each: binding.init(model, jax.random.key(0), *each), *inputs, of_batch)
    return params, *inputs, of_batch


def gflops(model: nn.Module, image_shape: tuple[int, ...], condition: Condition) -> float:
    """Billions of multiply-adds of a forward pass of one image (H, W, C), one each, as Peebles & Xie 2022 count."""
    params, *inputs = shapes_of(model, image_shape, condition)
    return flops.count(lambda params, *inputs: binding.bind(model, params)(*inputs)[0], params, *inputs) / 2e9


def parameters(params: Any) -> int:
    """Trainable parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(int(leaf.size) for path, leaf in leaves if not path[-1].key.startswith("frozen_"))
