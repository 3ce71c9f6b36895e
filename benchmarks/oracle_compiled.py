"""What `benchmarks.oracle` measures of compiled programs: the driver, the adaptive solver, the likelihood."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.processes.base import Prediction, Process
from archirf_jax.samplers.choice import Choice
from archirf_jax.samplers.denoisers import Denoiser, Network
from archirf_jax.samplers.likelihood import Likelihood, log_density
from archirf_jax.samplers.sample import sample
from benchmarks import oracle_forms as forms
from benchmarks import oracle_guidance as guidance
from benchmarks.oracle_forms import MIXTURE, Compiled, walk
from benchmarks.oracle_laws import EXACT, HIGHEST, Cell, Column, Row, judged, place, rms, says_nothing, start

BATCH, STEPS = 64, 8
DOPRI5 = Column("dopri5", Choice(solver="dopri5", steps=1))
CLOSE = 2e-3  # root mean square error of dopri5 with its own tolerances of 1e-4 a step
LOW, PROBES = 0.02, 16
ADAPTED = 1e-8  # guided and not: the same steps but for rounding
GUIDED = ("classifier_free 2", "autoguidance 2", "classifier 1", "static threshold", "dynamic threshold")
SURE = (0.5, 1.5)  # root mean square of the error over that of the stated one
WIDE = 0.4  # standard deviation of the images whose likelihood is measured
LIKELY = forms.Data(np.asarray([-0.7, 0.5]), np.asarray([WIDE, WIDE]), np.asarray([5, 7]) / 12)


def has_dopri5() -> bool:
    """Whether its package is installed."""
    return importlib.util.find_spec("diffrax") is not None


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The denoiser of several whose number is `which`, known only when the program runs: one program for all."""

    denoisers: tuple[Denoiser, ...]
    which: jax.Array

    @property
    def process(self) -> Process:
        """What all of them share but for the prediction."""
        return self.denoisers[0].process

    def init(self, x: jax.Array) -> Any:
        """No memory."""
        return ()

    def __call__(self, x: jax.Array, t: jax.Array, y: Any, memory: Any) -> tuple[Prediction, Any]:
        """The prediction of one."""

        def ask(denoise: Denoiser) -> Any:
            return lambda: denoise(x, t, y, ())[0][:2]

        return Prediction(*jax.lax.switch(self.which, [ask(d) for d in self.denoisers])), memory


def driver(row: Row, columns: tuple[Column, ...]) -> list[Cell]:
    """Cells of the compiled driver: it makes the same images as the walk, of the same noise."""
    law = "the driver's images"

    def measure(column: Column) -> dict[str, tuple[float, bool]]:
        first = start(row, column)
        keys, y, grid = (
            jax.random.split(jax.random.key(0), 4),
            forms.images(MIXTURE, 4),
            forms.even(row.process, STEPS, first),
        )
        denoise = Choice().make_denoiser(row.process, forms.conditional(row.process), None)
        solver, shape = column.solver(), (1, 1, 1)
        both = jax.jit(lambda: sample(keys, denoise, y, shape, grid=grid, solver=solver, stride=STEPS))()
        step_keys = jax.vmap(jax.random.split)(keys)[:, 1]

        def noise(i: int, _: tuple[int, ...]) -> np.ndarray:
            return np.asarray(jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(step_keys))

        fresh = [noise(i, shape) for i in range(STEPS)]
        walked = walk(solver, Compiled(denoise), grid, np.asarray(both[0]), y, lambda i, _: fresh[i])
        off = float(np.max(np.abs(walked - np.asarray(both[-1]))))
        return {law: (off, off <= EXACT)}

    cells = []
    for column in columns:
        cells += judged(place(row, column), {law: f"at most {EXACT}"}, functools.partial(measure, column))
    return cells


def turned(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two pixels (B, 2, 1, 1) seen along and across the diagonal, where `LIKELY`'s images are independent."""
    a, b = x[:, 0, 0, 0], x[:, 1, 0, 0]
    return (a + b) / np.sqrt(2), (a - b) / np.sqrt(2)


ALONG = LIKELY._replace(means=LIKELY.means * np.sqrt(2))
ACROSS = LIKELY._replace(means=np.zeros(2))


def diagonal(count: int) -> forms.Data:
    """`LIKELY` in both pixels alike, for each of `count` images."""
    one = forms.images(LIKELY, count)
    return one._replace(means=np.broadcast_to(one.means, (count, 2, 2, 1, 1)))


def together(rows: list[Row], more: tuple[Denoiser, ...] = ()) -> Callable[[jax.Array], OneOf]:
    """The networks of rows of one process, and further denoisers, by number."""
    networks = tuple(Network(row.process, forms.conditional(row.process)) for row in rows)
    return lambda which: OneOf(networks + more, which)


def likelihood(rows: list[Row]) -> list[Cell]:
    """Cells of the log-density under the networks of one process: it is as far from the analytic one as it says."""
    process, several = rows[0].process, together(rows)
    high = min(HIGHEST, float(process.ratio(np.asarray(1.0))))
    grid = forms.even_in_log(process, 64, high, LOW)
    keys, y = jax.random.split(jax.random.key(1), BATCH), diagonal(BATCH)
    x, right = images_and_log_density(process, float(grid[0, 0]), float(grid[-1, 1]))

    @jax.jit
    def both(which: jax.Array) -> list[Likelihood]:
        return [
            log_density(keys, several(which), jnp.asarray(x), y, grid=grid, probes=probes) for probes in (None, PROBES)
        ]

    def measure(which: int) -> dict[str, tuple[float, bool]]:
        exact, probed = jax.tree.map(np.asarray, both(jnp.asarray(which)))
        step = rms(exact.value - right) / rms(exact.step_error)
        noise = rms((probed.value - right) / np.hypot(probed.standard_error, probed.step_error))
        return {name: (value, SURE[0] <= value <= SURE[1]) for name, value in zip(laws, (step, noise), strict=True)}

    laws, cells = (
        dict.fromkeys(("error of the exact trace", "error of probes"), "the stated error, {} to {}".format(*SURE)),
        [],
    )
    for i, row in enumerate(rows):
        at = (row.name, row.prediction, "likelihood", "none")
        cells += judged(at, laws, functools.partial(measure, i))
    return cells


def images_and_log_density(process: Process, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, 2, 1, 1) at time `last`, and their density under what the exact ODE makes of noise at `first`."""
    rng = np.random.default_rng(9)
    coins = rng.uniform(size=(BATCH, 1, 1, 1)) < LIKELY.weights[0]
    x0 = np.where(coins, *LIKELY.means) + WIDE * rng.normal(size=(BATCH, 2, 1, 1))
    t = np.asarray(last)
    x = process.alpha(t) * x0 + process.sigma(t) * rng.normal(size=x0.shape)
    along, across = (
        forms.model_log_density(v, data, process, first, last)
        for v, data in zip(turned(x), (ALONG, ACROSS), strict=True)
    )
    return x, along + across


def adaptive(rows: list[Row], names: tuple[str, ...] = GUIDED) -> list[Cell]:
    """Cells of dopri5 on the networks of one process, and of the first one's under guidance."""
    process, first = rows[0].process, min(start(row, DOPRI5) for row in rows)
    kinds = {name: kind for name, kind in guidance.kinds().items() if name in names}
    network = forms.conditional(process)
    several = together(rows, tuple(guidance.denoiser(process, network, kind) for kind in kinds.values()))
    solver, shape, grid = DOPRI5.solver(), guidance.SHAPE, forms.even(process, 1, first)
    keys = jax.random.split(jax.random.key(2), BATCH)

    @jax.jit
    def run(which: jax.Array, y: forms.Data) -> jax.Array:
        return sample(keys, several(which), y, shape, grid=grid, solver=solver, stride=1)

    def close(which: int) -> dict[str, tuple[float, bool]]:
        x, end = np.asarray(run(jnp.asarray(which), diagonal(BATCH)))
        right = [forms.transported(v, d, process, first, 0.0) for v, d in zip(turned(x), (ALONG, ACROSS), strict=True)]
        off = rms(np.stack(turned(end)) - np.stack(right))
        return {"error": (off, off <= CLOSE)}

    def same(which: int, kind: guidance.Kind) -> dict[str, tuple[float, bool]]:
        repeated = [jax.tree.map(lambda a: np.resize(a, (BATCH, *a.shape[1:])), y) for y in (kind.y, kind.same)]
        ends = [np.asarray(run(jnp.asarray(i), y))[1] for i, y in zip((which, 0), repeated, strict=True)]
        off = float(np.max(np.abs(ends[0] - ends[1])))
        return {"ends": (off, off <= ADAPTED)}

    cells = refused_by_dopri5(rows)
    for i, row in enumerate(rows):
        cells += judged(place(row, DOPRI5), {"error": f"at most {CLOSE}"}, functools.partial(close, i))
    for i, (name, kind) in enumerate(kinds.items()):
        measure = functools.partial(same, len(rows) + i, kind)
        cells += judged(place(rows[0], DOPRI5, name), {"ends": f"at most {ADAPTED}"}, measure)
    return cells


def refused_by_dopri5(rows: list[Row]) -> list[Cell]:
    """The cells that say so: noise of which nothing can be said, and guidance that remembers between trial steps."""
    kind = guidance.kinds()["adaptive_projected 2"]

    def measure(row: Row, denoise: Denoiser) -> dict[str, tuple[float, bool]]:
        grid = forms.even(row.process, 1, 1.0)
        row.process.check_start(float(grid[0, 0]))
        DOPRI5.solver().init(denoise, grid, jnp.zeros((1, *guidance.SHAPE)))
        return {}

    cells = []
    for row in rows:
        network = forms.conditional(row.process)
        if says_nothing(row, DOPRI5):
            attempt = functools.partial(measure, row, Network(row.process, network))
            cells += judged(place(row, DOPRI5), {"from pure noise": "refused"}, attempt, refused=True)
        attempt = functools.partial(measure, row, guidance.denoiser(row.process, network, kind))
        cells += judged(place(row, DOPRI5, "adaptive_projected 2"), {"memory": "refused"}, attempt, refused=True)
    return cells
