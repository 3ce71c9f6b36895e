"""The plot of `benchmarks.oracle`: error against evaluations of the network, for every solver."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.sample import sample
from tests.samplers import compiled, forms
from tests.samplers.checks import COLUMNS, Column, Row, distance, draws, plain, rms, start
from tests.samplers.forms import MIXTURE, walk
from tests.samplers.guided import Calls, counted

STEPS = (4, 8, 16, 32, 64, 128, 256)
MANY, FEW = 16384, 256  # images of a stochastic and of a deterministic solver
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
STYLES = dict(
    zip(
        [*(column.name for column in COLUMNS), "dopri5"],
        ("C0o-", "C1x--", "C2^-", "C3v-", "C4s-", "C5D-", "C6o:", "C7x:", "C8^:", "C9D:", "k*-"),
        strict=True,
    )
)
Line = list[tuple[float, float]]  # evaluations, error


def lines(row: Row, columns: tuple[Column, ...] = COLUMNS, steps: tuple[int, ...] = STEPS) -> dict[str, Line]:
    """Evaluations and errors of each solver on the mixture, from noise to the data in steps even in flow time.

    The error is the root mean square distance from the exact end where the solver is deterministic, and Wasserstein's
    from exact draws where it is not.
    """
    found, denoise = {}, plain(row)
    for column in columns:
        found[column.name] = [(float(column.evaluations(n)), _error(row, column, denoise, n)) for n in steps]
    return found | ({"dopri5": adaptive(row)} if compiled.dopri5() else {})


def _error(row: Row, column: Column, denoise: Any, steps: int) -> float:
    rng, first = np.random.default_rng(steps), start(row)
    count = FEW if column.order else MANY
    x = float(row.process.sigma(np.asarray(first))) * rng.normal(size=(count, 1, 1, 1))
    noise: forms.Noise = forms.no_noise if column.order else (lambda i, shape: rng.normal(size=shape))
    grid, data = forms.even(row.process, steps, first), forms.images(MIXTURE, count)
    end = walk(column.config.make_solver(), denoise, grid, x, data, noise).ravel()
    if column.order:
        return rms(end - forms.transported(x.ravel(), MIXTURE, row.process, first, 0.0))
    return distance(end, draws(MIXTURE, count, rng))


def floor() -> float:
    """Wasserstein's distance of two sets of exact draws."""
    rng = np.random.default_rng(0)
    return float(np.mean([distance(draws(MIXTURE, MANY, rng), draws(MIXTURE, MANY, rng)) for _ in range(10)]))


def adaptive(row: Row, count: int = 32) -> Line:
    """dopri5 under falling tolerances; all images of a batch wait for the slowest."""
    from archirf_jax.samplers.solvers.dopri5 import Dopri5

    process, first, calls = row.process, 1.0, Calls()
    denoise = NetworkDenoiser(process, counted(forms.conditional(process), calls))
    keys, condition = jax.random.split(jax.random.key(0), count), forms.images(MIXTURE, count)._asdict()
    grid = forms.even(process, 1, first)

    @jax.jit
    def run(tolerance: jax.Array) -> jax.Array:
        solver = Dopri5(rtol=tolerance, atol=tolerance)  # type: ignore[arg-type]
        return sample(keys, denoise, condition, (1, 1, 1), grid=grid, solver=solver, stride=1)

    found = []
    for tolerance in TOLERANCES:
        calls.clear()
        x, end = np.asarray(run(jnp.asarray(tolerance))).reshape(2, count)
        jax.effects_barrier()
        found.append((len(calls) / count, rms(end - forms.transported(x, MIXTURE, process, first, 0.0))))
    return found


def plot(panels: dict[str, dict[str, Line]], noise: float, path: pathlib.Path) -> None:
    """One panel a process, one line a solver."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels) + 2, 5.2), sharey=True, squeeze=False)
    for axis, (title, found) in zip(axes[0], panels.items(), strict=True):
        for name, line in found.items():
            axis.plot(*zip(*line, strict=True), STYLES[name], label=name, markersize=5, linewidth=1.4, fillstyle="none")
        axis.axhline(noise, color="grey", linewidth=1, label="noise of the distance")
        axis.set(xscale="log", yscale="log", title=title, xlabel="network evaluations")
        ticks = [4, 8, 16, 32, 64, 128, 256, 512]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(
        "error: root mean square of the ends (solid, dashed)\nWasserstein distance of the distribution (dotted)"
    )
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
