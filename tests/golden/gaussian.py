"""Cases of guided-diffusion: what one training step and one sampling step of a DDPM with learned variance compute."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import registry
from archirf_jax.contracts import Condition, Extras, Models, Setting
from archirf_jax.objectives.ddpm_hybrid import DdpmHybrid
from archirf_jax.objectives.regression import Draw
from archirf_jax.processes.base import ask, expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.variational_bound import bound
from archirf_jax.samplers import grids, solvers
from archirf_jax.samplers.denoisers import NetworkDenoiser
from tests.golden.case import Case, UnsupportedSource, choice, settings

SCHEDULES = {"linear": "linear", "cosine": "cosine"}
BETAS_PER_STEP = (0.1, 20.0)  # of the linear schedule, times T: the published ends belong to T = 1000


def run(case: Case) -> dict[str, np.ndarray]:
    """Everything that a case may hold, images NCHW."""
    h = settings("hyperparameter", case.hyperparameters, dict(schedule="linear", steps=1000, respacing=""))
    with jax.enable_x64(True):
        process = process_of(**h)
        abar = process.alpha(process.times) ** 2
        index = jnp.asarray(case.inputs["t"])
        t = jnp.asarray(process.times)[index]
        x0, eps = (jnp.asarray(nhwc(case.inputs[name]), jnp.float64) for name in ("x", "noise"))
        values = compiled(process)(x0, eps, t, index)
    found = {name: np.moveaxis(np.asarray(v), -1, 1) if v.ndim == 4 else np.asarray(v) for name, v in values.items()}
    return found | dict(alphas_cumprod=abar, use_timesteps=process.visited)


@functools.cache
def process_of(schedule: str, steps: int, respacing: str) -> DDPM:
    """The reference's process."""
    schedule = choice("hyperparameter schedule", schedule, SCHEDULES)
    for name, value, kind in (("steps", steps, int), ("respacing", respacing, str)):
        if not isinstance(value, kind):
            raise UnsupportedSource(f"unsupported hyperparameter {name}: {value!r}; supported: {kind.__name__}")
    start, end = (scale / steps for scale in BETAS_PER_STEP) if schedule == "linear" else (None, None)
    return DDPM(
        schedule=schedule,
        steps=steps,
        beta_start=start,
        beta_end=end,
        variance="learned_range",
        respacing=respacing or None,
    )


def network(
    x: jax.Array, t: jax.Array, condition: Condition, *, s: jax.Array | None = None
) -> tuple[jax.Array, Extras]:
    """The network of all cases; its variance sees the channels in reverse."""
    return jnp.concatenate([answer(x, t), jnp.tanh(answer(x[..., ::-1], t))], axis=-1), {}


def answer(x: jax.Array, t: jax.Array) -> jax.Array:
    """A closed form of x (B, H, W, C) and the network time t (B,)."""
    a = expand(t / 1000, x)
    return 0.6 * jnp.tanh(x) * jnp.cos(a) + 0.3 * jnp.sin(2 * x + a) + 0.1 * a


@functools.cache
def compiled(process: DDPM) -> Any:
    """`values_of` for all cases of one process."""
    return jax.jit(functools.partial(values_of, process))


def values_of(process: DDPM, x0: jax.Array, eps: jax.Array, t: jax.Array, index: jax.Array) -> dict[str, jax.Array]:
    """Images (B, H, W, C) and losses (B,) at times t (B,), which are the visited steps index (B,)."""
    x = process.noised(x0, eps, t)
    prediction = process.interpret(ask(process, network, x, t, {})[0], x, t)
    mean, log_variance = process.p_moments(prediction, x, index)
    table = jax.tree.map(lambda column: expand(jnp.asarray(column)[index], x), process.posterior)
    # The bound counts in full, in bits.
    objective = DdpmHybrid(process=process, likelihood="adm", bound_weight=1 / len(process.visited))
    drawn = Draw(x0, eps, t, jnp.ones_like(t), {})
    loss, _, _ = objective.losses(Models(network), Setting(process, {}, jnp.int32(0)), drawn)
    vb = bound(process, prediction, x0, x, index, "adm")
    return dict(
        x_t=x,
        pred_xstart=prediction.x0,
        p_mean=mean,
        p_log_variance=log_variance,
        q_mean=table.from_x0 * x0 + table.from_x * x,
        q_log_variance=jnp.broadcast_to(table.log_small, x.shape),
        ddim_sample=ddim(process, x, index),
        loss=loss,
        vb=vb,
        mse=loss - vb,
    )


def ddim(process: DDPM, x: jax.Array, index: jax.Array) -> jax.Array:
    """Each image one step down the visited ones."""
    grid = grids.pairs(np.append(process.times[::-1], 0.0))[::-1]
    solver, denoise = registry.build(solvers, "sample.solver.name", "ddim", {}), NetworkDenoiser(process, network)
    steps = jnp.asarray(grid)[index]

    def step(x: jax.Array, pair: jax.Array) -> jax.Array:
        return solver.step(jnp.zeros_like(x[None]), denoise, x[None], pair[0], pair[1], {}, ())[0][0]

    return jax.vmap(step)(x, steps)


def nhwc(images: np.ndarray) -> np.ndarray:
    """From NCHW."""
    return np.moveaxis(images, 1, -1)
