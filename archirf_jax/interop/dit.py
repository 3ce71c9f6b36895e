"""Names and layouts of the published DiT weights: facebookresearch/DiT `state_dict` -> parameters of `models.dit`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

State = Mapping[str, np.ndarray]

# Ours -> theirs; linear layers are (in, out) here and (out, in) there.
BLOCK_LAYERS: dict[tuple[str, ...], str] = {
    ("attention", "qkv"): "attn.qkv",
    ("attention", "out"): "attn.proj",
    ("mlp", "hidden"): "mlp.fc1",
    ("mlp", "out"): "mlp.fc2",
    ("modulation",): "adaLN_modulation.1",
}
OUTER_LAYERS: dict[tuple[str, ...], str] = {
    ("time_embedding", "hidden"): "t_embedder.mlp.0",
    ("time_embedding", "out"): "t_embedder.mlp.2",
    ("final_layer", "modulation"): "final_layer.adaLN_modulation.1",
    ("final_layer", "linear"): "final_layer.linear",
}


def params_from_state_dict(state: State, num_classes: int) -> dict[str, Any]:
    """Parameters of `DiT` from a published `state_dict`.

    Args:
        state: tensor name -> array; a stored position table is ignored, since it is fixed.
        num_classes: labels of the model. A model trained without dropped labels has no null row: it becomes zeros.

    Returns:
        The tree `DiT.init(...)["params"]` would have.

    Raises:
        KeyError: a tensor is missing.
    """
    numbers = [int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))]
    depth = 1 + max(numbers, default=-1)
    params: dict[str, Any] = {}
    for path, name in OUTER_LAYERS.items():
        _put(params, path, _linear(state, name))
    for i in range(depth):
        for path, name in BLOCK_LAYERS.items():
            _put(params, (f"block_{i}", *path), _linear(state, f"blocks.{i}.{name}"))

    kernel = state["x_embedder.proj.weight"]  # (D, C, p, p): a convolution whose stride is its size
    patches = kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])  # (p*p*C, D)
    params["patch_embedding"] = {"kernel": patches, "bias": state["x_embedder.proj.bias"]}

    labels = state["y_embedder.embedding_table.weight"]
    padding = np.zeros((num_classes + 1 - len(labels), labels.shape[1]), labels.dtype)
    params["label_embedding"] = {"embedding": np.concatenate([labels, padding])}
    return params


def _linear(state: State, name: str) -> dict[str, np.ndarray]:
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value
