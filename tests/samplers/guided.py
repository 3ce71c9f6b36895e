"""Guidance on the perfect network of any process: where guided images must end, and how often the network is asked.

Between normal distributions of one width guidance is that of a third: scale s leads from N(b, std^2) through N(a,
std^2) to N(b + s (a - b), std^2) at every time. So the guided ends are those of another network without guidance.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Denoiser, ModelFn
from archirf_jax.processes.base import Process
from archirf_jax.processes.oracles import process_time
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.grids.karras import SIGMAS
from tests.samplers import forms
from tests.samplers.checks import EXACT, Check, Column, Row
from tests.samplers.forms import Compiled, Data, normal, walk

BATCH, SHAPE, STEPS = 4, (2, 1, 1), 8
SCALE, STD, OTHER_STD, HALF = 2.0, 0.3, 0.5, 0.5
ETA, NORM_THRESHOLD, MOMENTUM = 0.5, 0.8, -0.5
QUANTILE = 0.995  # of the dynamic threshold
_random = np.random.default_rng(7)
MEANS = _random.uniform(-1, 1, (BATCH, *SHAPE))
NULL, WEAK = _random.uniform(-1, 1, (2, *SHAPE))
BRIGHT = np.broadcast_to(np.reshape([1.5, 0.6], SHAPE), (BATCH, *SHAPE))
OFF = ("none", "classifier_free 1", "adaptive_projected 1", "autoguidance 1")
PROJECTED = "adaptive_projected 2"
Calls = list[tuple[int, float]]  # batch size and network time of each evaluation


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to guide.

    Attributes:
        fields: changes of a `SamplerConfig`.
        data: what the guided network is conditioned on.
        same: what a network is conditioned on that without guidance ends at the same images.
        std: of the unconditional and the weaker network's images.
        batches: size of an evaluation at a time, in units of the batch.
        networks: how many are asked each time.
        classifier: whether a classifier guides.
    """

    fields: dict[str, Any]
    data: Data
    same: Data
    std: float = STD
    batches: Callable[[float], int] = lambda t: 1
    networks: int = 1
    classifier: bool = False


def kinds() -> dict[str, Kind]:
    """Every way to guide, by name."""
    plain, point, bright = normal(MEANS, STD), normal(MEANS, 0.0), normal(BRIGHT, 0.0)
    led, pushed = NULL + SCALE * (MEANS - NULL), WEAK + SCALE * (MEANS - WEAK)
    largest = np.quantile(np.abs(BRIGHT), QUANTILE, axis=(1, 2, 3), keepdims=True)
    scaled: dict[str, Any] = {"guidance_scale": SCALE}
    projected = {"apg_eta": ETA, "apg_norm_threshold": NORM_THRESHOLD, "apg_momentum": MOMENTUM}
    either = Data(
        np.stack(np.broadcast_arrays(MEANS, NULL), axis=1),
        np.broadcast_to([STD, OTHER_STD], (BATCH, 2)),
        np.broadcast_to([0.4, 0.6], (BATCH, 2)),
    )
    dynamic = normal(np.clip(BRIGHT, -largest, largest) / largest, 0.0)
    return {
        "none": Kind({}, plain, plain),
        **{name: Kind({"guidance": name.split()[0]}, plain, plain) for name in OFF[1:]},
        "classifier_free 2": Kind(scaled, plain, normal(led, STD), batches=lambda t: 2),
        "classifier_free 2 for t <= 0.5": Kind(
            scaled | {"guidance_interval": (0.0, HALF)},
            point,
            normal(led, 0.0),
            0.0,
            lambda t: 2 if t <= HALF else 1,
        ),
        "autoguidance 2": Kind(scaled | {"guidance": "autoguidance"}, plain, normal(pushed, STD), networks=2),
        PROJECTED: Kind(
            scaled | projected | {"guidance": "adaptive_projected"}, point, point, 0.0, batches=lambda t: 2
        ),
        "classifier 1": Kind({}, either, plain, classifier=True),
        "static threshold": Kind({"threshold": "static"}, bright, normal(np.clip(BRIGHT, -1, 1), 0.0)),
        "dynamic threshold": Kind({"threshold": "dynamic"}, bright, dynamic),
    }


def counted(model_fn: ModelFn, calls: Calls) -> ModelFn:
    """The network, which records each evaluation when it is made, not when it is compiled."""

    def counting(x: jax.Array, t: jax.Array, condition: Any, *, s: Any = None) -> Any:
        jax.debug.callback(lambda time: calls.append((x.shape[0], float(time))), t[0])
        return model_fn(x, t, condition)

    return counting


def denoiser(process: Process, network: ModelFn, kind: Kind) -> Denoiser:
    """The network under this guidance."""

    def weak(x: jax.Array, t: jax.Array, condition: Any, *, s: Any = None) -> Any:
        others = normal(WEAK, kind.std)._asdict()
        return network(x, t, {key: jnp.broadcast_to(others[key], leaf.shape) for key, leaf in condition.items()})

    return (
        SamplerConfig()
        .replace(**kind.fields)
        .make_denoiser(
            NetworkDenoiser(process, network),
            normal(NULL, kind.std)._asdict(),
            NetworkDenoiser(process, weak),
            forms.log_posterior(process) if kind.classifier else None,
        )
    )


def projected_ends(column: Column) -> np.ndarray:
    """Where adaptive projected guidance ends on points: at the image that the last evaluation leads to.

    The midpoint method looks ahead from the evaluation before: its end is twice the last image less the one before.
    """

    def image(evaluations: int) -> np.ndarray:
        run = (MEANS - NULL) * np.sum(MOMENTUM ** np.arange(evaluations))
        run = run * np.minimum(1, NORM_THRESHOLD / np.linalg.norm(run, axis=1, keepdims=True))
        direction = MEANS / np.linalg.norm(MEANS, axis=1, keepdims=True)
        along = np.sum(run * direction, axis=1, keepdims=True) * direction
        return MEANS + (SCALE - 1) * (run - along + ETA * along)

    n = column.evaluations(STEPS)
    return 2 * image(n) - image(n - 1) if column.name == "midpoint" else image(n)


class Guided:
    """A row's network under every guidance, or those named."""

    def __init__(self, row: Row, names: tuple[str, ...] = ()) -> None:
        """Nothing is compiled yet."""
        self.row, self.calls = row, Calls()
        self.kinds = {name: kind for name, kind in kinds().items() if not names or name in names}
        # From a level that is not pure noise, where a classifier is asked elsewhere and a step of two calls has one.
        grid = {"name": "karras", "sigma_max": SIGMAS[1]}
        self.grid = SamplerConfig.from_config({"grid": grid, "steps": STEPS}).make_grid(row.process)
        self.network = counted(forms.conditional(row.process), self.calls)
        self.plain = Compiled(NetworkDenoiser(row.process, self.network))
        self.denoisers = {name: self._compiled(kind) for name, kind in self.kinds.items()}

    def _compiled(self, kind: Kind) -> Compiled:
        # At scale 1 guidance is off: the same network, and so the same program.
        made = denoiser(self.row.process, self.network, kind)
        return self.plain if made == self.plain.inner else Compiled(made)

    def checks(self, column: Column) -> dict[str, Check]:
        """For each guidance, where the images end, with the calls of the network that they may cost."""
        unguided = functools.cache(lambda name: self._ends(column, self.plain, self.kinds[name].same))
        return {name: self._check(column, name, unguided) for name in self.kinds}

    def _check(self, column: Column, name: str, unguided: Any) -> Check:
        kind, process = self.kinds[name], self.row.process
        right = projected_ends(column) if name == PROJECTED else unguided(name)
        off = float(np.max(np.abs(self._ends(column, self.denoisers[name], kind.data) - right)))
        sizes = all(n == BATCH * kind.batches(float(process_time(process, np.asarray(t)))) for n, t in self.calls)
        count = len(self.calls) == column.evaluations(STEPS) * kind.networks
        allowed = 0 if name in OFF else EXACT
        return Check("ends and calls", off, f"at most {allowed:g}", sizes and count and off <= allowed)

    def _ends(self, column: Column, denoise: Compiled, data: Data) -> np.ndarray:
        """Images of the same noise for any guidance; the calls are recorded."""
        self.calls.clear()
        rng = np.random.default_rng(8)
        x = float(self.row.process.sigma(np.asarray(self.grid[0, 0]))) * rng.normal(size=(BATCH, *SHAPE))
        solver = column.config.make_solver()
        end = walk(solver, denoise, self.grid, x, data, lambda i, shape: rng.normal(size=shape))
        jax.effects_barrier()
        return end
