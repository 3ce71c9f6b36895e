"""Cases of guided-diffusion: what one training step and one sampling step of a DDPM with learned variance compute."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import registry
from archirf_jax.processes.base import expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.respacing import respaced
from archirf_jax.samplers import grids, solvers
from archirf_jax.samplers.denoisers import Network
from tests.golden.case import Case, UnsupportedSource, choice, settings
from tests.golden.schedulers import closed_form

SCHEDULES = {"linear": "linear", "cosine": "cosine"}
BETAS_PER_STEP = (0.1, 20.0)  # of the linear schedule, times T: the published ends belong to T = 1000


def run(case: Case) -> dict[str, np.ndarray]:
    """Everything that a case may hold, images NCHW."""
    h = settings("hyperparameter", case.hyperparameters, dict(schedule="linear", steps=1000, respacing=""))
    with jax.enable_x64(True):
        process = process_of(**h)
        times = process.time(process.visited.astype(np.float64))
        abar = process.alpha(times) ** 2
        index = jnp.asarray(case.inputs["t"])
        t = jnp.asarray(times)[index]
        x0, eps = (jnp.asarray(nhwc(case.inputs[name]), jnp.float64) for name in ("x", "noise"))
        values = jax.jit(functools.partial(values_of, process))(x0, eps, t, index)
    found = {name: np.moveaxis(np.asarray(v), -1, 1) if v.ndim == 4 else np.asarray(v) for name, v in values.items()}
    return found | dict(alphas_cumprod=abar, use_timesteps=process.visited)


def process_of(schedule: str, steps: int, respacing: str) -> DDPM:
    """The reference's process."""
    schedule = choice("hyperparameter schedule", schedule, SCHEDULES)
    for name, value, kind in (("steps", steps, int), ("respacing", respacing, str)):
        if not isinstance(value, kind):
            raise UnsupportedSource(f"unsupported hyperparameter {name}: {value!r}; supported: {kind.__name__}")
    start, end = (scale / steps for scale in BETAS_PER_STEP) if schedule == "linear" else (0.0, 0.0)
    return DDPM(
        schedule=schedule,
        steps=steps,
        beta_start=start,
        beta_end=end,
        variance="learned_range",
        respacing=respacing,
        likelihood="adm",
        bound_weight=1 / len(respaced(respacing or str(steps), steps)),  # the bound counts in full, in bits
    )


def network(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
    """The network of all cases; its variance sees the channels in reverse."""
    return jnp.concatenate([closed_form(x, t, y), jnp.tanh(closed_form(x[..., ::-1], t, y))], axis=-1)


def values_of(process: DDPM, x0: jax.Array, eps: jax.Array, t: jax.Array, index: jax.Array) -> dict[str, jax.Array]:
    """Images (B, H, W, C) and losses (B,) at times t (B,), which are the visited steps index (B,)."""
    x = process.noised(x0, eps, t)
    prediction = process.predict(network, x, t, None)
    mean, log_variance = process.p_moments(prediction, x, index)
    table = jax.tree.map(lambda column: expand(jnp.asarray(column)[index], x), process.posterior)
    loss, aux = process.error(network(x, process.network_time(t), None), x0, eps, x, t)
    vb = process.bound_weight * len(process.visited) * aux["bound"]
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
    grid = grids.pairs(np.append(process.time(process.visited[::-1].astype(np.float64)), 0.0))[::-1]
    solver, denoise = registry.build(solvers, "solver", "ddim", {}), Network(process, network)
    steps = jnp.asarray(grid)[index]

    def step(x: jax.Array, pair: jax.Array) -> jax.Array:
        return solver.step(jnp.zeros_like(x[None]), denoise, x[None], pair[0], pair[1], None, ())[0][0]

    return jax.vmap(step)(x, steps)


def nhwc(images: np.ndarray) -> np.ndarray:
    """From NCHW."""
    return np.moveaxis(images, 1, -1)
