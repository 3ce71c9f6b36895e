"""Where the parameters of text encoders lie in transformers' CLIPTextModel, T5EncoderModel and BertModel.

Names are those after what all names of a file share, such as "text_model.".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from archirf_jax.interop.weights import LINEAR, SAME, Layout, Path, Rename, numbered
from archirf_jax.models.bert import BERT
from archirf_jax.models.clip_text import CLIPText
from archirf_jax.models.t5_encoder import T5Encoder

POSITION_IDS = "embeddings.position_ids"  # 0, 1, 2, ... in some files; not a parameter
# The table of T5's tokens under its other name; files have either or both.
T5_ALIASES = {"embed_tokens.weight": "shared.weight"}


def rename_clip_text(model: CLIPText) -> Rename:
    """Where the parameters of `model` lie in the published weights."""
    del model
    outer = {
        "tokens": "embeddings.token_embedding",
        "positions": "embeddings.position_embedding",
        "final_norm": "final_layer_norm",
        "projection": "text_projection",
    }
    inner = {
        **{f"attention/{name}": f"self_attn.{name[0]}_proj" for name in ("query", "key", "value")},
        **{"attention/out": "self_attn.out_proj", "attention_norm": "layer_norm1", "mlp_norm": "layer_norm2"},
        **{"mlp/hidden": "mlp.fc1", "mlp/out": "mlp.fc2"},
    }
    return _rename(outer, "encoder.layers.{}", inner)


def rename_t5(model: T5Encoder) -> Rename:
    """Where the parameters of `model` lie in the published weights."""
    outer = {
        "tokens": "shared",
        "distances": "block.0.layer.0.SelfAttention.relative_attention_bias",
        "final_norm": "final_layer_norm",
    }
    parts = {"hidden": "wi_0", "gate": "wi_1", "out": "wo"} if model.gated else {"hidden": "wi", "out": "wo"}
    inner = {
        **{f"attention/{name}": f"layer.0.SelfAttention.{name[0]}" for name in ("query", "key", "value", "out")},
        **{"attention_norm": "layer.0.layer_norm", "mlp_norm": "layer.1.layer_norm"},
        **{f"mlp/{name}": f"layer.1.DenseReluDense.{theirs}" for name, theirs in parts.items()},
    }
    return _rename(outer, "block.{}", inner)


def rename_bert(model: BERT) -> Rename:
    """Where the parameters of `model` lie in the published weights."""
    del model
    outer = {
        "tokens": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "types": "embeddings.token_type_embeddings",
        "norm": "embeddings.LayerNorm",
        "pooler": "pooler.dense",
    }
    inner = {
        **{f"attention/{name}": f"attention.self.{name}" for name in ("query", "key", "value")},
        **{"attention/out": "attention.output.dense", "attention_norm": "attention.output.LayerNorm"},
        **{"mlp/hidden": "intermediate.dense", "mlp/out": "output.dense", "mlp_norm": "output.LayerNorm"},
    }
    return _rename(outer, "encoder.layer.{}", inner)


def clip_text_tensor(name: str) -> str | None:
    """The network's own name of a tensor; None for those of an image encoder, or of other parts of a system."""
    own = re.search(r"(?:^|\.)text_(?:model\.(.+)|(projection\.weight))$", name)
    if own:
        return own[1] or f"text_{own[2]}"
    return name if re.match(r"(embeddings|encoder|final_layer_norm)\.", name) else _elsewhere(name)


def t5_tensor(name: str) -> str | None:
    """The network's own name of a tensor; None for those of a decoder."""
    if re.match(r"(decoder|lm_head)\.", name):
        return None
    return name.removeprefix("encoder.")


def bert_tensor(name: str) -> str | None:
    """The network's own name of a tensor, with the names of norms as they are today; None for heads."""
    if name.startswith("cls."):
        return None
    former = {"gamma": "weight", "beta": "bias"}
    return re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda found: former[found[1]], name.removeprefix("bert."))


def position_ids(model: CLIPText | BERT) -> dict[str, np.ndarray]:
    """The numbers of positions, which some files hold."""
    return {POSITION_IDS: np.arange(model.max_length)[None]}


def _elsewhere(name: str) -> str | None:
    other = re.match(r"(vision_model|visual_projection|logit_scale|model|first_stage_model|conditioner)\b", name)
    return None if other else name


def _rename(outer: Mapping[str, str], block: str, inner: Mapping[str, str]) -> Rename:
    """Names by layer: of those outside of blocks, of the blocks, and of the layers in one."""

    def find(path: Path) -> tuple[str, Layout]:
        *layer, leaf = path
        number = numbered(path[0], "block")
        name = outer["/".join(layer)] if number is None else f"{block.format(number)}.{inner['/'.join(layer[1:])]}"
        return f"{name}.{'bias' if leaf == 'bias' else 'weight'}", LINEAR if leaf == "kernel" else SAME

    return find
