"""The cases of pytorch-fid: its network's features for images of any size, and the distance between two sets."""

from __future__ import annotations

import jax
import numpy as np

from archirf_jax.evaluation import distances
from archirf_jax.evaluation.inception import Inception
from archirf_jax.evaluation.statistics import moments
from archirf_jax.interop import inception
from tests.golden.case import Case, settings


def run(case: Case) -> dict[str, np.ndarray]:
    """Features after every part of the network, and logits."""
    settings("hyper-parameter", case.hyperparameters, {})
    network = Inception()
    params = inception.load(network, case.params, "checkpoint")
    said = jax.jit(network.apply)({"params": params}, case.inputs["images"].transpose(0, 2, 3, 1))
    blocks = {f"block{i}_mean": np.asarray(block) for i, block in enumerate(said.blocks)}
    return blocks | {"pool3": np.asarray(said.pool3), "logits": np.asarray(said.logits)}


def frechet(case: Case) -> dict[str, np.ndarray]:
    """The distance between two sets of features."""
    settings("hyper-parameter", case.hyperparameters, {})
    return {"fid": np.asarray(distances.frechet(moments(case.inputs["real"]), moments(case.inputs["fake"])))}
