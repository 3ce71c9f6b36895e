"""diffusers' SD3Transformer2DModel: the names and layouts of Stable Diffusion 3 and 3.5 in the folder of a pipeline.

Queries, keys and values are a layer each, and adaptive norms without a gate scale before they shift.
"""

from __future__ import annotations

import re
from typing import Any

from archirf_jax.interop import sd3
from archirf_jax.interop.weights import (
    LINEAR,
    SAME,
    Layout,
    Path,
    Rename,
    Shapes,
    numbered,
    patches,
    require,
    side_by_side,
)
from archirf_jax.models.mmdit import MMDiT

POSITIONS, PATCHES = "pos_embed.pos_embed", "pos_embed.proj.weight"
OUTER = {
    ("patch_embedding",): "pos_embed.proj",
    ("time_embedding", "hidden"): "time_text_embed.timestep_embedder.linear_1",
    ("time_embedding", "out"): "time_text_embed.timestep_embedder.linear_2",
    ("context", "pooled", "hidden"): "time_text_embed.text_embedder.linear_1",
    ("context", "pooled", "out"): "time_text_embed.text_embedder.linear_2",
    ("context", "tokens"): "context_embedder",
    ("final_layer", "modulation"): "norm_out.linear",
    ("final_layer", "linear"): "proj_out",
}
QKV = ("project", "qkv")
MLP = {("perceptron", part): name for part, name in sd3.PERCEPTRONS["gelu"].items()}


def _attention(name: str) -> dict[Path, str]:
    norms = {("project", f"{long}_norm"): f"{name}.norm_{short}" for long, short in (("query", "q"), ("key", "k"))}
    return norms | {QKV: f"{name}.to_{{}}", ("out",): f"{name}.to_out.0"}


# By stream; {} stands for q, k and v.
INNER: dict[str, dict[Path, str]] = {
    "image": {
        ("modulation",): "norm1.linear",
        **_attention("attn"),
        **{("second", *path): name for path, name in _attention("attn2").items()},
        ("perceptron", "hidden"): "ff.net.0.proj",
        ("perceptron", "out"): "ff.net.2",
    },
    "context": {
        ("modulation",): "norm1_context.linear",
        QKV: "attn.add_{}_proj",
        ("project", "query_norm"): "attn.norm_added_q",
        ("project", "key_norm"): "attn.norm_added_k",
        ("out",): "attn.to_add_out",
        ("perceptron", "hidden"): "ff_context.net.0.proj",
        ("perceptron", "out"): "ff_context.net.2",
    },
}


# Layers of a block by the reference's name after joint_blocks.NUMBER; the queries' stands for all three.
REFERENCE = {
    name.format("q"): f"{sd3.STREAMS[stream]}.{(sd3.INNER | MLP)[path]}"
    for stream, layers in INNER.items()
    for path, name in layers.items()
}


def _turned(w: Any) -> Any:
    return w.reshape(2, -1, *w.shape[1:])[::-1].reshape(w.shape)


TURNED = Layout(lambda w: _turned(w).T, lambda w: _turned(w.T))  # (scale, shift), (out, in) <-> (in, out), shift first


def rename(model: MMDiT) -> Rename:
    """Where the parameters of `model` (context "text", no single-stream blocks) lie in the published weights."""

    def of(path: Path) -> tuple[str | tuple[str, ...], Layout]:
        *layer, leaf = path
        if path == ("frozen_positions",):
            return POSITIONS, sd3.BATCHED
        block, kind = numbered(path[0], "block"), "bias" if leaf == "bias" else "weight"
        inner = OUTER[tuple(layer)] if block is None else INNER[path[1]][tuple(layer[2:])]
        name = f"{inner}.{kind}" if block is None else f"transformer_blocks.{block}.{inner}.{kind}"
        if "{}" in name:
            return tuple(name.format(each) for each in "qkv"), side_by_side(3)
        if layer == ["final_layer", "modulation"] or layer == [f"block_{model.depth - 1}", "context", "modulation"]:
            return name, TURNED
        if leaf == "kernel":
            return name, patches(model.patch_size) if layer == ["patch_embedding"] else LINEAR
        return name, SAME

    return of


def as_reference(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes under the reference's names, which `sd3.fields` reads; tensors of no such name are left out.

    Raises:
        UserError: there are none of such a network.
    """
    require(shapes, "Stable Diffusion 3", PATCHES, POSITIONS, "transformer_blocks.0.attn.to_q.weight")
    known = {name: sd3.OUTER[path] for path, name in OUTER.items()}
    found = {"pos_embed": shapes[POSITIONS]}
    for name, shape in shapes.items():
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        layer, _, kind = name.rpartition(".")
        if layer in known:
            found[f"{known[layer]}.{kind}"] = shape
        elif block and block[2] in REFERENCE:
            reference = REFERENCE[block[2]]
            joined = (3 * shape[0], *shape[1:]) if reference.endswith(".qkv") else shape
            found[f"joint_blocks.{block[1]}.{reference}.{block[3]}"] = joined
    return found
