"""Samplers do at their steps only what differs from step to step, whatever the network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.data.fields import shapes
from archirf_jax.models.adm_unet import ADMUNet
from archirf_jax.models.binding import bind, init
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.grids.uniform import Uniform
from archirf_jax.samplers.sample import sample
from archirf_jax.samplers.solvers.euler import Euler
from archirf_jax.tasks.building import make_task
from configs import adm_ddpm, dit_rf, edm2_edm
from tests.samplers.test_invariants import equations
from tests.tasks import settings

BATCH, STEPS = 2, 3
HALF = {"model.dtype": "bfloat16"}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dit": (dit_rf, settings.SMALL | HALF | {"model.depth": 2}),
    "dit, blocks in a loop": (dit_rf, settings.SMALL | HALF | {"model.depth": 2, "model.scan": True}),
    "dit, remat": (dit_rf, settings.SMALL | HALF | {"model.remat": True}),
    "dit, guided within an interval": (dit_rf, settings.SMALL | HALF | {"sample.guidance.interval": (0.2, 0.7)}),
    "edm2": (edm2_edm, HALF | {"data.num_classes": 3, "sample.steps": 3}),  # Heun's steps ask twice
    "adm": (adm_ddpm, HALF | {"data.num_classes": 3, "sample.steps": 3}),
}


def sampled(file: Any, changes: dict[str, Any], hoist: bool) -> tuple[Any, Any]:
    """The jaxpr of the sampler's loop, and images."""
    task: Any = make_task(settings.config(file, changes, {}))
    params = settings.moved(jax.eval_shape(lambda key: task.init_params(key, {}), jax.random.key(0)))
    batch = {
        name: jnp.zeros(leaf.shape, leaf.dtype) if name == "label" else jnp.ones(leaf.shape, leaf.dtype)
        for name, leaf in shapes(task.fields, BATCH).items()
    }
    keys = jax.random.split(jax.random.key(0), BATCH)
    program = task.sampler(task.sampling.replace(hoist=hoist))
    traced = program.trace(params, {}, batch, keys)
    loops = [eqn for eqn in equations(traced.jaxpr.jaxpr) if eqn.primitive.name == "scan"]
    loop = max(loops, key=lambda eqn: len(list(equations(eqn.params["jaxpr"].jaxpr))))
    return loop.params["jaxpr"].jaxpr, (params, np.asarray(program(params, {}, batch, keys)))


def conversions(jaxpr: Any, params: Any) -> int:
    """Of arrays that are shaped like kernels, or slices of them, from float32."""
    kernels = {leaf.shape[i:] for leaf in jax.tree.leaves(params) for i in (0, 1) if leaf.ndim - i > 1}
    return sum(
        eqn.primitive.name == "convert_element_type"
        and eqn.invars[0].aval.shape in kernels
        and eqn.invars[0].aval.dtype == jnp.float32
        for eqn in equations(jaxpr)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_converted_once(name: str) -> None:
    """The images are those of a sampler that converts them at every step, up to bfloat16's rounding."""
    plain, (params, images) = sampled(*NETWORKS[name], hoist=False)
    moved, (_, same) = sampled(*NETWORKS[name], hoist=True)
    assert conversions(plain, params) > 2
    assert conversions(moved, params) == 0
    assert np.max(np.abs(images - same)) <= 1e-2 * np.max(np.abs(images))


def test_keys_and_values_of_a_text_are_made_once() -> None:
    """No product in the loop has as many rows as there are tokens."""
    tokens, width = 7, 5
    network = ADMUNet(class_conditional=False, context_width=width, **{**ADMUNet.presets["tiny"], "model_channels": 32})
    condition = {"tokens": jnp.ones((BATCH, tokens, width)), "mask": jnp.ones((BATCH, tokens), bool)}
    params = init(network, jax.random.key(0), jnp.ones((BATCH, 4, 4, 3)), jnp.ones(BATCH), condition)
    process, keys = RectifiedFlow(), jax.random.split(jax.random.key(0), BATCH)
    grid = Uniform().times(process, STEPS)

    def of_text(hoist: bool) -> int:
        def draw(params: Any, condition: Any) -> jax.Array:
            denoise = NetworkDenoiser(process, bind(network, params))
            return sample(keys, denoise, condition, (4, 4, 3), grid=grid, solver=Euler(), hoist=hoist)

        (loop,) = (each for each in jax.make_jaxpr(draw)(params, condition).eqns if each.primitive.name == "scan")
        products = (each for each in equations(loop.params["jaxpr"].jaxpr) if each.primitive.name == "dot_general")
        return sum(each.invars[0].aval.shape == (BATCH * tokens, width) for each in products)

    assert of_text(hoist=False) > 0
    assert of_text(hoist=True) == 0
