"""What holds of compiled programs on perfect networks: the driver, the likelihood and the adaptive solver."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Denoiser, Prediction
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.likelihood import Likelihood, log_density
from archirf_jax.samplers.sample import sample
from tests.samplers import forms, guided
from tests.samplers.checks import EXACT, HIGHEST, Check, Column, Row, rms, start
from tests.samplers.forms import MIXTURE, Compiled, walk

BATCH, STEPS = 64, 8
CLOSE = 2e-3  # root mean square error of dopri5 with its own tolerances of 1e-4 a step
LOW, PROBES = 0.02, 16
ADAPTED = 1e-8  # guided and not: the same steps but for rounding
GUIDED = ("classifier_free 2", "autoguidance 2", "classifier 1", "static threshold", "dynamic threshold")
SURE = (0.5, 1.5)  # root mean square of the error over that of the stated one
WIDE = 0.4  # standard deviation of the images whose likelihood is measured
LIKELY = forms.Data(np.asarray([-0.7, 0.5]), np.asarray([WIDE, WIDE]), np.asarray([5, 7]) / 12)
ALONG = LIKELY._replace(means=LIKELY.means * np.sqrt(2))
ACROSS = LIKELY._replace(means=np.zeros(2))


def dopri5() -> Column | None:
    """Its column, where its package is installed."""
    if importlib.util.find_spec("diffrax") is None:
        return None
    return Column("dopri5", SamplerConfig.from_config({"solver": "dopri5", "steps": 1}))


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The denoiser of several whose number is `which`, known only when the program runs: one program for all."""

    denoisers: tuple[Denoiser, ...]
    which: jax.Array

    @property
    def process(self) -> Process:
        """What all of them share but for the prediction."""
        process: Process = self.denoisers[0].process
        return process

    def init(self, x: jax.Array) -> Any:
        """None has a state."""
        return ()

    def __call__(self, x: jax.Array, t: jax.Array, condition: Any, state: Any, *, s: Any = None) -> Any:
        """The prediction of one."""

        def ask(denoise: Denoiser) -> Any:
            return lambda: denoise(x, t, condition, denoise.init(x))[0][:2]

        return Prediction(*jax.lax.switch(self.which, [ask(d) for d in self.denoisers])), state


def driver(row: Row, column: Column) -> Check:
    """The compiled driver makes the same samples as the walk, of the same noise."""
    first, shape = start(row), (1, 1, 1)
    keys, data = jax.random.split(jax.random.key(0), 4), forms.images(MIXTURE, 4)
    grid, solver = forms.even(row.process, STEPS, first), column.config.make_solver()
    denoise = NetworkDenoiser(row.process, forms.conditional(row.process))
    states = jax.jit(lambda: sample(keys, denoise, data._asdict(), shape, grid=grid, solver=solver, stride=STEPS))()
    step_keys = jax.vmap(jax.random.split)(keys)[:, 1]
    noise = jax.vmap(lambda i: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(step_keys))(
        jnp.arange(STEPS)
    )
    fresh = np.asarray(noise)
    walked = walk(solver, Compiled(denoise), grid, np.asarray(states[0]), data, lambda i, _: fresh[i])
    off = float(np.max(np.abs(walked - np.asarray(states[-1]))))
    return Check("the driver's samples", off, f"at most {EXACT}", off <= EXACT)


def turned(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two pixels (B, 2, 1, 1) seen along and across the diagonal, where `LIKELY`'s images are independent."""
    a, b = x[:, 0, 0, 0], x[:, 1, 0, 0]
    return (a + b) / np.sqrt(2), (a - b) / np.sqrt(2)


def diagonal(count: int) -> forms.Data:
    """`LIKELY` in both pixels alike, for each of `count` images."""
    one = forms.images(LIKELY, count)
    return one._replace(means=np.broadcast_to(one.means, (count, 2, 2, 1, 1)))


def together(rows: list[Row], more: tuple[Denoiser, ...] = ()) -> Callable[[jax.Array], OneOf]:
    """The networks of rows of one process, and further denoisers, by number."""
    networks = tuple(NetworkDenoiser(row.process, forms.conditional(row.process)) for row in rows)
    return lambda which: OneOf(networks + more, which)


def likelihood(rows: list[Row]) -> list[list[Check]]:
    """For each row of one process: log-densities are as far from the analytic ones as they say."""
    process, several = rows[0].process, together(rows)
    high = min(HIGHEST, float(process.ratio(np.asarray(1.0))))
    grid = forms.even_in_log(process, 64, high, LOW)
    keys, condition = jax.random.split(jax.random.key(1), BATCH), diagonal(BATCH)._asdict()
    x, right = images_and_log_density(process, float(grid[0, 0]), float(grid[-1, 1]))

    @jax.jit
    def both(which: jax.Array) -> list[Likelihood]:
        return [
            log_density(keys, several(which), jnp.asarray(x), condition, grid=grid, probes=n) for n in (None, PROBES)
        ]

    def checks(which: int) -> list[Check]:
        exact, probed = jax.tree.map(np.asarray, both(jnp.asarray(which)))
        step = rms(exact.value - right) / rms(exact.step_error)
        noise = rms((probed.value - right) / np.hypot(probed.standard_error, probed.step_error))
        names, text = ("error of the exact trace", "error of probes"), "the stated error, {} to {}".format(*SURE)
        return [Check(n, v, text, SURE[0] <= v <= SURE[1]) for n, v in zip(names, (step, noise), strict=True)]

    return [checks(which) for which in range(len(rows))]


def images_and_log_density(process: Process, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, 2, 1, 1) at time `last`, and their density under what the exact ODE makes of noise at `first`."""
    rng = np.random.default_rng(9)
    coins = rng.uniform(size=(BATCH, 1, 1, 1)) < LIKELY.weights[0]
    x0 = np.where(coins, *LIKELY.means) + WIDE * rng.normal(size=(BATCH, 2, 1, 1))
    t = np.asarray(last)
    x = process.alpha(t) * x0 + process.sigma(t) * rng.normal(size=x0.shape)
    parts = zip(turned(x), (ALONG, ACROSS), strict=True)
    along, across = (forms.model_log_density(v, data, process, first, last) for v, data in parts)
    return x, along + across


def adaptive(rows: list[Row], column: Column, names: tuple[str, ...] = GUIDED) -> tuple[list[Check], dict[str, Check]]:
    """dopri5 on the networks of one process, and on the first one's under each guidance."""
    process, first = rows[0].process, min(_start(row) for row in rows)
    kinds = {name: kind for name, kind in guided.kinds().items() if name in names}
    network, solver = forms.conditional(process), column.config.make_solver()
    several = together(rows, tuple(guided.denoiser(process, network, kind) for kind in kinds.values()))
    keys = jax.random.split(jax.random.key(2), BATCH)
    # Guidances are compared from nearly there: in pure noise a classifier is asked elsewhere.
    nearly = min(first, float(process.time_of_ratio(np.asarray(HIGHEST))))

    @functools.partial(jax.jit, static_argnums=0)
    def run(begin: float, which: jax.Array, condition: Any) -> jax.Array:
        grid = forms.even(process, 1, begin)
        return sample(keys, several(which), condition, guided.SHAPE, grid=grid, solver=solver, stride=1)

    def close(which: int) -> Check:
        x, end = np.asarray(run(first, jnp.asarray(which), diagonal(BATCH)._asdict()))
        parts = zip(turned(x), (ALONG, ACROSS), strict=True)
        right = [forms.transported(v, data, process, first, 0.0) for v, data in parts]
        off = rms(np.stack(turned(end)) - np.stack(right))
        return Check("error", off, f"at most {CLOSE}", off <= CLOSE)

    def same(which: int, kind: guided.Kind) -> Check:
        pairs = ((which, kind.data), (0, kind.same))
        ends = [
            np.asarray(
                run(nearly, jnp.asarray(i), {k: np.resize(a, (BATCH, *a.shape[1:])) for k, a in data._asdict().items()})
            )
            for i, data in pairs
        ]
        off = float(np.max(np.abs(ends[0][1] - ends[1][1])))
        return Check("ends", off, f"at most {ADAPTED}", off <= ADAPTED)

    return [close(i) for i in range(len(rows))], {
        name: same(len(rows) + i, kind) for i, (name, kind) in enumerate(kinds.items())
    }


def _start(row: Row) -> float:
    pure = float(row.process.alpha(np.asarray(1.0))) == 0 and row.prediction == "eps"
    return float(row.process.time_of_ratio(np.asarray(HIGHEST))) if pure else 1.0


def refuses_state(row: Row, column: Column) -> Check:
    """dopri5 refuses guidance that keeps state between trial steps."""
    kind = guided.kinds()[guided.PROJECTED]
    denoise = guided.denoiser(row.process, forms.conditional(row.process), kind)
    grid = forms.even(row.process, 1, _start(row))
    try:
        column.config.make_solver().init(denoise, grid, jnp.zeros((1, *guided.SHAPE)))
    except UserError:
        return Check("state", np.nan, "refused", True)
    return Check("state", np.nan, "refused", False)
