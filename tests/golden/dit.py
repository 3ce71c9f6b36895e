"""DiT cases: the forward pass of facebookresearch/DiT."""

from __future__ import annotations

import jax
import numpy as np

from archirf_jax.interop import dit
from archirf_jax.interop.weights import to_params
from archirf_jax.models.dit import DiT
from tests.golden.case import Case, programs, settings

# What the reference's constructor assumes where a case names no value.
DEFAULTS = dict(
    input_size=32,
    patch_size=2,
    in_channels=4,
    hidden_size=1152,
    depth=28,
    num_heads=16,
    mlp_ratio=4.0,
    class_dropout_prob=0.1,
    num_classes=1000,
    learn_sigma=True,
)


def run(case: Case) -> dict[str, np.ndarray]:
    """The network's output for the case's images, times and labels."""
    given = settings("hyper-parameter", case.hyperparameters, DEFAULTS)
    null_label = given.pop("class_dropout_prob") > 0
    del given["input_size"], given["in_channels"]
    model = DiT(**given, null_label=null_label)
    x = case.inputs["x"].transpose(0, 2, 3, 1)
    inputs = (x, case.inputs["t"].astype(np.float32), {"label": case.inputs["y"].astype(np.int32)})
    init, apply = programs(model)
    like = init.eval_shape(jax.random.key(0), *inputs)["params"]
    state = {name: value for name, value in case.params.items() if name != dit.POSITIONS}
    out = apply({"params": to_params(state, like, dit.rename(model))}, *inputs)
    return {"y": np.asarray(out).transpose(0, 3, 1, 2)}
