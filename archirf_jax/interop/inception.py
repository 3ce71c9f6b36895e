"""Names and layouts of Inception-v3's weights, as torchvision and pt_inception-2015-12-05 have them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError
from archirf_jax.interop.weights import CONV, LINEAR, SAME, Layout, Path, State, to_params

UNUSED = ("AuxLogits.", ".num_batches_tracked")  # of training alone
MOMENTS = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


def rename(path: Path) -> tuple[str, Layout]:
    """Where a parameter lies in the published weights."""
    *layers, leaf = path
    if path[0] in ("fc", "fc_bias"):
        return ("fc.weight", LINEAR) if layers else ("fc.bias", SAME)
    if layers[-1] == "conv":
        return f"{'.'.join(layers)}.weight", CONV
    return f"{'.'.join(layers)}.bn.{MOMENTS[leaf]}", SAME


def load(network: Any, tensors: State, field: str) -> Any:
    """Parameters of the network from published tensors.

    Args:
        network: takes images (B, H, W, 3).
        tensors: by published name.
        field: what named them, for messages.

    Raises:
        UserError: lists tensors that are missing, of another shape or without place.
    """
    like = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))["params"]
    used = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in UNUSED)}
    try:
        return to_params(used, like, rename)
    except UserError as e:
        raise UserError(field, message=f"{e.message}; the weights are those of pt_inception-2015-12-05") from e
