"""MMDiT cases: the forward pass of Stability-AI/sd3.5 MMDiTX."""

from __future__ import annotations

import jax
import numpy as np

from archirf_jax.interop import sd3
from archirf_jax.interop.weights import to_params
from archirf_jax.models.mmdit import MMDiT
from tests.golden.case import Case, choice, programs, settings

# What the reference's constructor assumes where a case names no value.
DEFAULTS = dict(
    input_size=32,
    patch_size=2,
    in_channels=4,
    depth=28,
    mlp_ratio=4.0,
    learn_sigma=False,
    adm_in_channels=None,
    context_embedder_config=None,
    register_length=0,
    attn_mode="torch",
    rmsnorm=False,
    scale_mod_only=False,
    swiglu=False,
    out_channels=None,
    pos_embed_scaling_factor=None,
    pos_embed_offset=None,
    pos_embed_max_size=None,
    num_patches=None,
    qk_norm=None,
    x_block_self_attn_layers=(),
    qkv_bias=True,
)
QK_NORMS = {None: None, "rms": "rms", "ln": "layer"}


def run(case: Case) -> dict[str, np.ndarray]:
    """The network's output for the case's images, times, pooled vectors and contexts."""
    given = settings("hyper-parameter", case.hyperparameters, DEFAULTS)
    depth, embedder = given["depth"], given["context_embedder_config"]
    linear = embedder is not None and embedder["target"] == "torch.nn.Linear"
    model = MMDiT(
        num_classes=1,
        context="text",
        context_width=embedder["params"]["in_features"] if linear else None,
        pooled_width=given["adm_in_channels"],
        patch_size=given["patch_size"],
        hidden_size=64 * depth,
        depth=depth,
        num_heads=depth,
        dual_layers=tuple(i for i in given["x_block_self_attn_layers"] or () if 0 <= i < depth),
        mlp_ratio=given["mlp_ratio"],
        mlp="swiglu" if given["swiglu"] else "gelu",
        qk_norm=choice("qk_norm", given["qk_norm"], QK_NORMS),
        norm="rms" if given["rmsnorm"] else "layer",
        scale_only=given["scale_mod_only"],
        use_bias=given["qkv_bias"],
        registers=given["register_length"],
        position_size=given["pos_embed_max_size"],
        out_channels=given["out_channels"],
        learn_sigma=given["learn_sigma"],
    )
    x, t = case.inputs["x"].transpose(0, 2, 3, 1), case.inputs["t"].astype(np.float32)
    tokens = case.inputs.get("context", np.zeros((len(x), 0, 64 * depth), np.float32))
    y = {"tokens": tokens} | ({"pooled": case.inputs["pooled"]} if "pooled" in case.inputs else {})
    init, apply = programs(model)
    like = init.eval_shape(jax.random.key(0), x, t, y)["params"]
    params = to_params(case.params, like, sd3.rename(model))
    return {"y": np.asarray(apply({"params": params}, x, t, y)).transpose(0, 3, 1, 2)}
