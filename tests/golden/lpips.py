"""The cases of LPIPS: distances and their parts, by the features of VGG-16 or AlexNet."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.interop.lpips_names import lpips_constants, lpips_tensor_name, rename_lpips
from archirf_jax.interop.weights import to_params
from archirf_jax.models.lpips import LPIPS, NETS
from tests.golden.adm import nhwc
from tests.golden.autoencoders import program
from tests.golden.case import Case, choice, settings
from tests.golden.synthetic import synthetic

DEFAULTS = dict(net=None, version="0.1", lpips=True, spatial=False)


def run(case: Case) -> dict[str, np.ndarray]:
    """Distances, and what each group of layers adds to them."""
    given = settings("hyper-parameter", case.hyperparameters, DEFAULTS)
    choice("hyper-parameter lpips", given["lpips"], {True: True})
    choice("hyper-parameter spatial", given["spatial"], {False: False})
    named = re.search(r"net=(\w+)", case.source)
    net = choice("network", given["net"] or (named[1] if named else "alex"), {net: net for net in NETS})
    model = LPIPS(net)
    a, b = (jnp.asarray(nhwc(case.inputs[name])) for name in ("a", "b"))
    like = jax.eval_shape(model.init, jax.random.key(0), a, b)["params"]
    names = {name: lpips_tensor_name(name) for name in case.params}
    state = {inner: case.params[name] for name, inner in names.items() if inner and inner not in lpips_constants()}
    params = to_params(state, like, rename_lpips)
    parts = np.asarray(program(model, "by_group")({"params": params}, a, b))
    return {"distance": parts.sum(axis=0), "per_layer": parts}


def parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter that is not stored: convolutions are larger than the common rule has them."""
    return synthetic(name, shape) * np.float32(2**0.5 if len(shape) == 4 else 1)
