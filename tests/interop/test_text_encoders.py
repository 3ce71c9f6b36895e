"""Laws of published text encoders: each is known by its shapes, and what these do not show is asked for."""

from __future__ import annotations

import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import sources
from archirf_jax.interop.weights import published_shapes
from archirf_jax.models.bert import BERT
from archirf_jax.models.clip_text import CLIPText
from archirf_jax.models.t5_encoder import T5Encoder
from archirf_jax.tasks.building import make_model
from tests.golden import cases
from tests.interop.test_sources import described

GOLDEN = pathlib.Path(cases.__file__).parent
CASES = {"clip_text_projection_gelu": "clip-text", "t5_v11_gated_gelu": "t5", "minilm": "minilm"}
HINTS = dict(num_heads=2, activation="gelu")
# Published network -> (source, network, id of padding, longest text). Blocks decide a field of CLIP alone.
PUBLISHED: dict[str, tuple[str, Any, int | None, int]] = {
    "CLIP L of SD and SDXL": ("clip-text", CLIPText.preset("L"), None, 77),
    "CLIP H of SD 2": ("clip-text", CLIPText.preset("H", depth=23, projection_size=None), 0, 77),
    "CLIP bigG": ("clip-text", CLIPText.preset("bigG"), 0, 77),
    "T5 1.1 XXL": ("t5", T5Encoder.preset("v1.1-XXL", depth=2), 0, 512),
    "T5 1.0": ("t5", T5Encoder(depth=2, gated=False, activation="relu", mlp_size=3072), 0, 512),
    "MiniLM": ("minilm", BERT.preset("MiniLM-L6"), 0, 256),
    "BERT without pooler": ("minilm", BERT.preset("base", depth=2, pooler=False), 0, 256),
}


def own_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Of a golden case, by the network's own names."""
    params = cases.load(GOLDEN / f"{name}.npz").params
    _, names = sources.split_prefix(params, CASES[name])
    return {inner: params[theirs].shape for theirs, inner in names.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_encoder_is_known_by_shapes_alone(name: str, caplog: pytest.LogCaptureFixture) -> None:
    source, model, padding, longest = PUBLISHED[name]
    like = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    with caplog.at_level(logging.INFO, "absl"):
        config = described(source, published_shapes(like, sources.rename(source, model, 1)))
    assert make_model(config).clone(dtype=jnp.float32) == model and config.task == "network"
    assert (config.tokenizer.pad_id, config.tokenizer.length) == (padding, longest)
    said = any("--activation=gelu" in record.getMessage() for record in caplog.records)
    assert said == name.startswith("CLIP L")


@pytest.mark.parametrize("name", CASES)
def test_tensors_with_fewer_axes_are_refused_or_left_to_the_list_of_wrong_shapes(name: str) -> None:
    shapes = own_shapes(name)
    for flat in [*shapes][:16]:
        for changed in (shapes | {flat: (7,)}, {each: shapes[each] for each in shapes if each != flat}):
            try:
                described(CASES[name], changed, **HINTS)
            except UserError as e:
                assert "\n" not in str(e)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("source", sources.SOURCES)
def test_other_kinds_refuse_these_tensors(name: str, source: str) -> None:
    if source != CASES[name]:
        with pytest.raises(UserError) as caught:
            described(source, own_shapes(name), **HINTS)
        assert caught.value.field == "checkpoint"


@pytest.mark.parametrize(
    ("name", "hints", "field"),
    [
        ("clip_text_projection_gelu", {"activation": "gelu"}, "model.num_heads"),
        ("clip_text_projection_gelu", {"num_heads": 5}, "model.activation"),
        ("minilm", {}, "model.num_heads"),
    ],
)
def test_what_shapes_do_not_show_is_asked_for(name: str, hints: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        described(CASES[name], own_shapes(name), **hints)
    assert caught.value.field == field


def test_a_file_of_both_halves_of_clip_gives_the_text_half() -> None:
    own = cases.load(GOLDEN / "clip_text_projection_gelu.npz").params
    others = ["vision_model.embeddings.class_embedding", "visual_projection.weight", "logit_scale"]
    _, names = sources.split_prefix([*own, *others], "clip-text")
    assert names.keys() == own.keys() and names["text_projection.weight"] == "text_projection.weight"
    assert names["text_model.final_layer_norm.bias"] == "final_layer_norm.bias"
