"""facebookresearch/DiT: names, layouts and hyper-parameters of the published class-conditional DiT.

SiT (Ma et al. 2024) and REPA (Yu et al. 2025) are the same network with the same names, trained as flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.interop.weights import LINEAR, SAME, Layout, Path, Rename, Shapes, count, numbered, patches, ratio
from archirf_jax.models.dit import PRESETS, DiT
from archirf_jax.models.layers import sincos_positions_2d

POSITIONS = "pos_embed"  # fixed, hence not a parameter of ours: (1, N, D)
# Peebles & Xie 2022, Table 1: heads by (width, depth); and what all published weights are for.
HEADS = {(fields["hidden_size"], fields["depth"]): fields["num_heads"] for fields in PRESETS.values()}
LABELS = "y_embedder.embedding_table.weight"
CLASSES = 1000  # of all published weights
# Fields that the tensors' names do not show.
PUBLISHED = dict(conditioning="adaln_zero", positions="sincos")

NAMES = {
    ("patch_embedding",): "x_embedder.proj",
    ("time_embedding", "hidden"): "t_embedder.mlp.0",
    ("time_embedding", "out"): "t_embedder.mlp.2",
    ("label_embedding",): "y_embedder.embedding_table",
    ("final_layer", "modulation"): "final_layer.adaLN_modulation.1",
    ("final_layer", "linear"): "final_layer.linear",
    ("attention", "project", "qkv"): "attn.qkv",
    ("attention", "out"): "attn.proj",
    ("mlp", "hidden"): "mlp.fc1",
    ("mlp", "out"): "mlp.fc2",
    ("modulation",): "adaLN_modulation.1",
}


def without_projectors(name: str) -> str | None:
    """A tensor's name; None for the perceptrons that REPA compares features by, which sampling does not need."""
    return None if name.startswith("projectors.") else name


def rename(model: DiT) -> Rename:
    """Where the parameters of `model` (adaln_zero, no registers, fixed positions) lie in the published weights.

    Raises:
        UserError: the model's parameters are named alike, but it computes something else than the published network.
    """
    for field, published in PUBLISHED.items():
        if getattr(model, field) != published:
            raise UserError(f"model.{field}", getattr(model, field), f"is not what is published, {published!r}")

    def of(path: Path) -> tuple[str, Layout]:
        *layer, leaf = path
        block = numbered(path[0], "block")
        name = NAMES[tuple(layer)] if block is None else f"blocks.{block}.{NAMES[tuple(layer[1:])]}"
        if leaf == "kernel":
            return f"{name}.weight", patches(model.patch_size) if layer == ["patch_embedding"] else LINEAR
        return f"{name}.{'bias' if leaf == 'bias' else 'weight'}", SAME

    return of


def fields(shapes: Shapes, hints: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the model, from shapes and, for what they leave open, from hints.

    Args:
        shapes: published name -> shape.
        hints: may hold num_heads and num_classes (where labels are not followed by a null label).

    Raises:
        UserError: shapes and hints leave a field open.
    """
    width, channels, patch, _ = shapes.get("x_embedder.proj.weight", (0, 1, 1, 1))
    rows = shapes.get(LABELS, (1, 0))[0]
    depth = count(shapes, r"blocks\.(\d+)\.")
    num_heads = hints.get("num_heads") or HEADS.get((width, depth))
    if not num_heads:
        raise UserError(
            "model.num_heads",
            message=f"the shapes (width {width}, depth {depth}) are not a published model's and leave the number of "
            "attention heads open; give it",
        )
    classes = hints.get("num_classes") or max(1, rows - 1)  # a single row is a class and not a null label
    out = shapes.get("final_layer.linear.weight", (0, 0))[0]
    return dict(
        num_classes=classes,
        null_label=rows > classes,
        patch_size=patch,
        hidden_size=width,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=ratio(shapes.get("blocks.0.mlp.fc1.weight", (4 * width, 0))[0], width),
        learn_sigma=out == 2 * channels * patch**2,
    )


def constants(model: DiT, image_size: int) -> dict[str, np.ndarray]:
    """The fixed table of positions of a square image, which the published weights hold."""
    side = image_size // model.patch_size
    return {POSITIONS: np.asarray(sincos_positions_2d(side, side, model.hidden_size))[None]}
