"""The cases of text encoders: transformers' CLIPTextModel, T5EncoderModel and BertModel with pooled sentences."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from archirf_jax.interop.text_names import (
    bert_tensor,
    clip_text_tensor,
    rename_bert,
    rename_clip_text,
    rename_t5,
    t5_tensor,
)
from archirf_jax.interop.weights import Rename, to_params
from archirf_jax.models.bert import BERT
from archirf_jax.models.clip_text import CLIPText
from archirf_jax.models.t5_encoder import T5Encoder, relative_buckets
from tests.golden.case import Case, choice, programs, settings

LARGEST_ID = 2  # what older configurations say of the id that ends a text, and what the code then looks for
CLIP_DEFAULTS = dict(
    **dict(vocab_size=49_408, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8),
    **dict(max_position_embeddings=77, hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=512),
    eos_token_id=49_407,
)
T5_DEFAULTS = dict(
    **dict(vocab_size=32_128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8),
    **dict(relative_attention_num_buckets=32, relative_attention_max_distance=128),
    **dict(layer_norm_epsilon=1e-6, feed_forward_proj="relu"),
)
BERT_DEFAULTS = dict(
    **dict(vocab_size=30_522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    **dict(hidden_act="gelu", max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12, pad_token_id=0),
)
# Their outputs -> ours.
CLIP_OUTPUTS = {
    **{"last_hidden_state": "tokens", "penultimate_hidden_state": "penultimate"},
    **{"pooled": "pooled", "text_embeds": "projected"},
}
BERT_OUTPUTS = {"last_hidden_state": "tokens", "mean_pooled": "pooled", "sentence_embedding": "sentence"}


def clip(case: Case) -> dict[str, np.ndarray]:
    """All states, without a mask and with it."""
    given = settings("hyper-parameter", case.hyperparameters, CLIP_DEFAULTS)
    choice("layer_norm_eps", given["layer_norm_eps"], {1e-5: 1e-5})
    end = given["eos_token_id"]
    model = CLIPText(
        vocab_size=given["vocab_size"],
        max_length=given["max_position_embeddings"],
        hidden_size=given["hidden_size"],
        depth=given["num_hidden_layers"],
        num_heads=given["num_attention_heads"],
        mlp_size=given["intermediate_size"],
        activation=choice("hidden_act", given["hidden_act"], {name: name for name in ("quick_gelu", "gelu")}),
        end_id=None if end == LARGEST_ID else end,
        projection_size=given["projection_dim"] if "text_projection.weight" in case.params else None,
    )
    params = _params(case, model, rename_clip_text(model), clip_text_tensor)
    outputs: dict[str, np.ndarray] = {}
    for suffix, mask in (("", None), ("_masked", case.inputs["attention_mask"])):
        found = _apply(model, params, case.inputs["input_ids"], mask)
        outputs |= {f"{theirs}{suffix}": found[ours] for theirs, ours in CLIP_OUTPUTS.items() if ours in found}
    return outputs


def t5(case: Case) -> dict[str, np.ndarray]:
    """States without a mask and with it, and the buckets of distances."""
    given = settings("hyper-parameter", case.hyperparameters, T5_DEFAULTS)
    choice("layer_norm_epsilon", given["layer_norm_epsilon"], {1e-6: 1e-6})
    gated = choice("feed_forward_proj", given["feed_forward_proj"], {"relu": False, "gated-gelu": True})
    model = T5Encoder(
        vocab_size=given["vocab_size"],
        hidden_size=given["d_model"],
        depth=given["num_layers"],
        num_heads=given["num_heads"],
        head_size=given["d_kv"],
        mlp_size=given["d_ff"],
        activation="gelu_tanh" if gated else "relu",
        gated=gated,
        buckets=given["relative_attention_num_buckets"],
        max_distance=given["relative_attention_max_distance"],
    )
    params = _params(case, model, rename_t5(model), t5_tensor)
    ids, mask = case.inputs["input_ids"], case.inputs["attention_mask"]
    table = relative_buckets(ids.shape[1], model.buckets, model.max_distance)
    return {
        "last_hidden_state": _apply(model, params, ids, None)["tokens"],
        "last_hidden_state_masked": _apply(model, params, ids, mask)["tokens"],
        "relative_buckets": np.concatenate([table[-1], table[0, 1:]]),
    }


def minilm(case: Case) -> dict[str, np.ndarray]:
    """States, their mean under the mask, and that with length 1."""
    given = settings("hyper-parameter", case.hyperparameters, BERT_DEFAULTS)
    choice("layer_norm_eps", given["layer_norm_eps"], {1e-12: 1e-12})
    choice("hidden_act", given["hidden_act"], {"gelu": "gelu"})
    model = BERT(
        vocab_size=given["vocab_size"],
        max_length=given["max_position_embeddings"],
        types=given["type_vocab_size"],
        hidden_size=given["hidden_size"],
        depth=given["num_hidden_layers"],
        num_heads=given["num_attention_heads"],
        mlp_size=given["intermediate_size"],
        pooler="pooler.dense.weight" in case.params,
    )
    params = _params(case, model, rename_bert(model), bert_tensor)
    inputs = [case.inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")]
    found = _apply(model, params, *inputs)
    return {theirs: found[ours] for theirs, ours in BERT_OUTPUTS.items()}


def _params(case: Case, model: Any, rename: Rename, name_of: Any) -> Any:
    like = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    names = {name: name_of(name) for name in case.params}
    return to_params({inner: case.params[name] for name, inner in names.items() if inner}, like, rename)


def _apply(model: Any, params: Any, ids: np.ndarray, *others: Any) -> dict[str, np.ndarray]:
    _, apply = programs(model)
    integers = [None if each is None else each.astype(np.int32) for each in (ids, *others)]
    return {name: np.asarray(value) for name, value in apply({"params": params}, *integers).items()}
