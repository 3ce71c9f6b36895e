"""Stability-AI/sd3.5 (MMDiTX): names, layouts and hyper-parameters of Stable Diffusion 3 and 3.5."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from archirf_jax.errors import UserError
from archirf_jax.interop.weights import LINEAR, SAME, Layout, Path, Rename, Shapes, count, numbered, patches, ratio
from archirf_jax.models.mmdit import MMDiT

FIRST = "joint_blocks.0.x_block"  # a stream that has everything
BATCHED = Layout(lambda a: a[0], lambda a: a[None])  # (1, N, D) <-> (N, D)

OUTER = {
    ("patch_embedding",): "x_embedder.proj",
    ("time_embedding", "hidden"): "t_embedder.mlp.0",
    ("time_embedding", "out"): "t_embedder.mlp.2",
    ("context", "pooled", "hidden"): "y_embedder.mlp.0",
    ("context", "pooled", "out"): "y_embedder.mlp.2",
    ("context", "tokens"): "context_embedder",
    ("final_layer", "modulation"): "final_layer.adaLN_modulation.1",
    ("final_layer", "linear"): "final_layer.linear",
}
TABLES = {"registers": "register", "frozen_positions": "pos_embed"}
STREAMS = {"context": "context_block", "image": "x_block"}
ATTENTION = {
    ("project", "qkv"): "qkv",
    ("project", "query_norm"): "ln_q",
    ("project", "key_norm"): "ln_k",
    ("out",): "proj",
}
INNER = {
    ("modulation",): "adaLN_modulation.1",
    **{path: f"attn.{name}" for path, name in ATTENTION.items()},
    **{("second", *path): f"attn2.{name}" for path, name in ATTENTION.items()},
}
PERCEPTRONS = {
    "gelu": {"hidden": "mlp.fc1", "out": "mlp.fc2"},
    "swiglu": {"hidden": "mlp.w1", "gate": "mlp.w3", "out": "mlp.w2"},
}


def rename(model: MMDiT) -> Rename:
    """Where the parameters of `model` (context "text", no single-stream blocks) lie in the published weights."""
    inner = INNER | {("perceptron", part): name for part, name in PERCEPTRONS[model.mlp].items()}

    def of(path: Path) -> tuple[str, Layout]:
        *layer, leaf = path
        if not layer:
            return TABLES[leaf], BATCHED
        block = numbered(path[0], "block")
        name = (
            OUTER[tuple(layer)]
            if block is None
            else f"joint_blocks.{block}.{STREAMS[path[1]]}.{inner[tuple(layer[2:])]}"
        )
        if leaf == "kernel":
            return f"{name}.weight", patches(model.patch_size) if layer == ["patch_embedding"] else LINEAR
        return f"{name}.{'bias' if leaf == 'bias' else 'weight'}", SAME

    return of


def fields(shapes: Shapes, hints: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the model, from shapes and, for what they leave open, from hints.

    Args:
        shapes: published name -> shape.
        hints: may hold num_heads.

    Raises:
        UserError: shapes and hints leave a field open.
    """
    width, channels, patch, _ = shapes.get("x_embedder.proj.weight", (0, 1, 1, 1))
    depth = count(shapes, r"joint_blocks\.(\d+)\.")
    head = shapes.get(f"{FIRST}.attn.ln_q.weight", (0,))[0]
    num_heads = hints.get("num_heads") or (width // head if head else depth if width == 64 * depth else 0)
    if not num_heads:
        raise UserError(
            "model.num_heads",
            message=f"the shapes (width {width}, depth {depth}) are not a published model's, which has 64 channels a "
            "head and as many heads as blocks; give the number of attention heads",
        )
    swiglu = f"{FIRST}.mlp.w1.weight" in shapes
    hidden = shapes.get(f"{FIRST}.mlp.{'w1' if swiglu else 'fc1'}.weight", (4 * width, 0))[0]
    dual = tuple(i for i in range(depth) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes)
    vectors = shapes.get(f"joint_blocks.{depth - 1}.context_block.adaLN_modulation.1.weight", (2 * width, 0))[0]
    out = shapes.get("final_layer.linear.weight", (0, 0))[0] // patch**2
    return dict(
        num_classes=1,
        context="text",
        context_width=shapes.get("context_embedder.weight", (0, None))[1],
        pooled_width=shapes.get("y_embedder.mlp.0.weight", (0, None))[1],
        patch_size=patch,
        hidden_size=width,
        depth=depth,
        num_heads=num_heads,
        dual_layers=dual,
        # A gated hidden layer is two thirds as wide, rounded up to a multiple of 256.
        mlp_ratio=ratio(hidden * 3 // 2 if swiglu else hidden, width),
        mlp="swiglu" if swiglu else "gelu",
        qk_norm=("layer" if f"{FIRST}.attn.ln_q.bias" in shapes else "rms") if head else None,
        norm=hints.get("norm") or "layer",
        scale_only=vectors == width,
        use_bias=f"{FIRST}.attn.qkv.bias" in shapes,
        registers=shapes.get("register", (1, 0, 0))[1],
        position_size=round(shapes.get("pos_embed", (1, 0, 0))[1] ** 0.5) or None,
        out_channels=None if out in (channels, 2 * channels) else out,
        learn_sigma=out == 2 * channels,
    )


def tensor_name(name: str) -> str | None:
    """The network's own name of a tensor in a checkpoint with several networks; None for those of another one."""
    if re.match(r"(first_stage_model|text_encoders|conditioner|cond_stage_model|model_sampling)\.", name):
        return None
    return name.removeprefix("model.diffusion_model.")
