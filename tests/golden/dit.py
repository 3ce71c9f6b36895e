"""DiT cases: the forward pass of facebookresearch/DiT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from archirf_jax.interop.dit import params_from_state_dict
from archirf_jax.models.dit import DiT

if TYPE_CHECKING:
    from tests.golden.cases import Case

# What the reference's constructor assumes where a case names no value.
DEFAULTS = dict(
    patch_size=2, hidden_size=1152, depth=28, num_heads=16, mlp_ratio=4.0, num_classes=1000, learn_sigma=True
)


def run(case: Case) -> dict[str, np.ndarray]:
    """The network's output for the case's images, times and labels."""
    model = DiT(**{name: case.hyperparameters.get(name, default) for name, default in DEFAULTS.items()})
    params = params_from_state_dict(case.params, model.num_classes)
    x = case.inputs["x"].transpose(0, 2, 3, 1)
    out = jax.jit(model.apply)({"params": params}, x, case.inputs["t"], case.inputs["y"].astype(np.int32))
    return {"y": np.asarray(out).transpose(0, 3, 1, 2)}
