"""transformers' text encoders: the configurations of runs that their tensors make.

The group `tokenizer` of such a configuration says how texts become ids: `length`, the most tokens of a text, and
`pad_id`; what depends on the file tokenizer.json is filled in when that is at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import logging

from archirf_jax.errors import UserError
from archirf_jax.interop.imported_data import data_group
from archirf_jax.interop.weights import Shapes, count, require

Groups = dict[str, dict[str, Any]]
CLIP_TABLE, T5_TABLE = "embeddings.token_embedding.weight", "shared.weight"
BERT_TABLE = "embeddings.word_embeddings.weight"
CLIP_HEAD = 64  # channels of a head of all published encoders
# Activations by width and number of blocks. Of the first two LAION's networks have the same shapes and "gelu".
ACTIVATIONS = {(512, 12): "quick_gelu", (768, 12): "quick_gelu"}
ACTIVATIONS |= {(1024, 23): "gelu", (1024, 24): "gelu", (1280, 32): "gelu"}
AMBIGUOUS = ((512, 12), (768, 12))
BERT_HEADS = {384: 12, 768: 12, 1024: 16}  # by width
T5_LENGTH, SENTENCE_LENGTH = 512, 256  # tokens that T5 and sentence-transformers' MiniLM were trained with


def describe_clip_text(shapes: Shapes, hints: Mapping[str, Any]) -> Groups:
    """The groups of a configuration of CLIP's text encoder.

    Args:
        shapes: published name -> shape.
        hints: may hold num_heads, activation, end_id and pad_id, which no shape shows.

    Raises:
        UserError: they are not such a network's, or neither they nor the hints decide a field.
    """
    require(shapes, "CLIP's text encoder", CLIP_TABLE, "encoder.layers.0.self_attn.q_proj.weight")
    vocabulary, width = shapes[CLIP_TABLE]
    depth = count(shapes, r"encoder\.layers\.(\d+)\.")
    length = shapes["embeddings.position_embedding.weight"][0]
    heads = hints.get("num_heads") or (width // CLIP_HEAD if (width, depth) in ACTIVATIONS else 0)
    activation = _activation((width, depth), hints.get("activation"))
    fields = dict(
        vocab_size=vocabulary,
        max_length=length,
        hidden_size=width,
        depth=depth,
        num_heads=heads or _unknown_heads(width, depth),
        mlp_size=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        activation=activation,
        end_id=hints.get("end_id"),
        projection_size=shapes.get("text_projection.weight", (None,))[0],
    )
    # OpenAI's texts are filled with the id that ends them, OpenCLIP's with 0.
    padding = hints.get("pad_id", 0 if activation == "gelu" else None)
    return _groups("clip_text", fields, length, padding)


def describe_t5(shapes: Shapes, hints: Mapping[str, Any]) -> Groups:
    """The groups of a configuration of T5's encoder; arguments and errors as of `describe_clip_text`."""
    query, table = (f"block.0.layer.0.SelfAttention.{name}.weight" for name in ("q", "relative_attention_bias"))
    require(shapes, "T5's encoder", T5_TABLE, query, table)
    gated = "block.0.layer.1.DenseReluDense.wi_0.weight" in shapes
    buckets, heads = shapes[table]
    fields = dict(
        vocab_size=shapes[T5_TABLE][0],
        hidden_size=shapes[T5_TABLE][1],
        depth=count(shapes, r"block\.(\d+)\."),
        num_heads=heads,
        head_size=shapes[query][0] // heads,
        mlp_size=shapes[f"block.0.layer.1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight"][0],
        activation="gelu_tanh" if gated else "relu",
        gated=gated,
        buckets=buckets,
    )
    return _groups("t5_encoder", fields, T5_LENGTH, hints.get("pad_id", 0))


def describe_bert(shapes: Shapes, hints: Mapping[str, Any]) -> Groups:
    """The groups of a configuration of BERT; arguments and errors as of `describe_clip_text`."""
    require(shapes, "BERT", BERT_TABLE, "encoder.layer.0.attention.self.query.weight")
    vocabulary, width = shapes[BERT_TABLE]
    length, depth = shapes["embeddings.position_embeddings.weight"][0], count(shapes, r"encoder\.layer\.(\d+)\.")
    fields = dict(
        vocab_size=vocabulary,
        max_length=length,
        types=shapes["embeddings.token_type_embeddings.weight"][0],
        hidden_size=width,
        depth=depth,
        num_heads=hints.get("num_heads") or BERT_HEADS.get(width) or _unknown_heads(width, depth),
        mlp_size=shapes["encoder.layer.0.intermediate.dense.weight"][0],
        pooler="pooler.dense.weight" in shapes,
    )
    return _groups("bert", fields, min(length, SENTENCE_LENGTH), hints.get("pad_id", 0))


def _groups(name: str, fields: dict[str, Any], length: int, pad_id: int | None) -> Groups:
    data = data_group(1, 1, None)  # a run describes images, and this one has none
    return dict(
        data=data, conditioners={}, model=dict(name=name, **fields), tokenizer=dict(length=length, pad_id=pad_id)
    )


def _activation(size: tuple[int, int], given: str | None) -> str:
    if given is None and size in AMBIGUOUS:
        logging.info("the network is taken to be OpenAI's; LAION's look alike: --activation=gelu")
    known = given or ACTIVATIONS.get(size)
    if known is None:
        what = f"is not known for width {size[0]} and {size[1]} blocks; give quick_gelu or gelu"
        raise UserError("model.activation", message=what)
    return known


def _unknown_heads(width: int, depth: int) -> int:
    what = f"the shapes (width {width}, depth {depth}) are not a published model's; give the number of attention heads"
    raise UserError("model.num_heads", message=what)
