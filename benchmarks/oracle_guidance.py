"""Guidance in `benchmarks.oracle`: where guided images must end, how often the network is asked, and what is refused.

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

from archirf_jax.processes.base import ModelFn, Process
from archirf_jax.samplers.choice import GUIDANCE, Choice
from archirf_jax.samplers.denoisers import ClassifierGuidance, Denoiser, Network
from benchmarks import oracle_forms as forms
from benchmarks.oracle_forms import Compiled, Data, normal, walk
from benchmarks.oracle_laws import EXACT, Cell, Column, Row, judged, place

BATCH, SHAPE, STEPS = 4, (2, 1, 1), 8
SCALE, STD, OTHER_STD, HALF = 2.0, 0.3, 0.5, 0.5
PARALLEL, LONGEST, MOMENTUM = 0.5, 0.8, -0.5
QUANTILE = 0.995  # of the dynamic threshold
_random = np.random.default_rng(7)
MEANS = _random.uniform(-1, 1, (BATCH, *SHAPE))
NULL, WEAK = _random.uniform(-1, 1, (2, *SHAPE))
BRIGHT = np.broadcast_to(np.reshape([1.5, 0.6], SHAPE), (BATCH, *SHAPE))
ENDS = "ends and calls"
Calls = list[tuple[int, float]]  # batch size and network time of each evaluation


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to guide.

    Attributes:
        choice: as a command would make it.
        y: of the guided network.
        same: y of a network that without guidance ends at the same images.
        std: of the unconditional and the weaker network's images.
        batches: size of an evaluation at a time, in units of the batch.
        networks: that are asked each time.
        classifier: whether a classifier guides.
    """

    choice: Choice
    y: Data
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
    projected: Any = {"guidance_parallel": PARALLEL, "guidance_longest": LONGEST, "guidance_momentum": MOMENTUM}
    either = Data(
        np.stack(np.broadcast_arrays(MEANS, NULL), axis=1),
        np.broadcast_to([STD, OTHER_STD], (BATCH, 2)),
        np.broadcast_to([0.4, 0.6], (BATCH, 2)),
    )
    return {
        "none": Kind(Choice(), plain, plain),
        **{f"{name} 1": Kind(Choice(guidance=name), plain, plain) for name in GUIDANCE},
        "classifier_free 2": Kind(Choice(guidance_scale=SCALE), plain, normal(led, STD), batches=lambda t: 2),
        "classifier_free 2 for t <= 0.5": Kind(
            Choice(guidance_scale=SCALE, guidance_interval=(0.0, HALF)),
            point,
            normal(led, 0.0),
            0.0,
            lambda t: 2 if t <= HALF else 1,
        ),
        "autoguidance 2": Kind(
            Choice(guidance="autoguidance", guidance_scale=SCALE), plain, normal(pushed, STD), networks=2
        ),
        "adaptive_projected 2": Kind(
            Choice(guidance="adaptive_projected", guidance_scale=SCALE, **projected), point, point, 0.0, lambda t: 2
        ),
        "classifier 1": Kind(Choice(), either, plain, classifier=True),
        "static threshold": Kind(Choice(threshold="static"), bright, normal(np.clip(BRIGHT, -1, 1), 0.0)),
        "dynamic threshold": Kind(
            Choice(threshold="dynamic"), bright, normal(np.clip(BRIGHT, -largest, largest) / largest, 0.0)
        ),
    }


def counted(model_fn: ModelFn, calls: Calls) -> ModelFn:
    """The network, which writes down each evaluation when it is made, not when it is compiled."""

    def counting(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        jax.debug.callback(lambda time: calls.append((x.shape[0], float(time))), t[0])
        return model_fn(x, t, y)

    return counting


def denoiser(process: Process, network: ModelFn, kind: Kind) -> Denoiser:
    """The network under this guidance."""
    if kind.classifier:
        return ClassifierGuidance(Network(process, network), forms.log_posterior(process))

    def weak(x: jax.Array, t: jax.Array, y: Data) -> jax.Array:
        others = jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), normal(WEAK, kind.std), y)
        return network(x, t, others)

    return kind.choice.make_denoiser(process, network, normal(NULL, kind.std), weak)


def projected_ends(column: Column) -> np.ndarray:
    """Where adaptive projected guidance ends on points: at the image that the last evaluation is led to.

    The midpoint method looks ahead from the evaluation before: its end is twice the last image less the one before.
    """

    def image(evaluations: int) -> np.ndarray:
        run = (MEANS - NULL) * np.sum(MOMENTUM ** np.arange(evaluations))
        run = run * np.minimum(1, LONGEST / np.linalg.norm(run, axis=1, keepdims=True))
        direction = MEANS / np.linalg.norm(MEANS, axis=1, keepdims=True)
        along = np.sum(run * direction, axis=1, keepdims=True) * direction
        return MEANS + (SCALE - 1) * (run - along + PARALLEL * along)

    n = column.evaluations(STEPS)
    return 2 * image(n) - image(n - 1) if column.choice.solver == "midpoint" else image(n)


class Guided:
    """A row's network under every guidance, or those named."""

    def __init__(self, row: Row, names: tuple[str, ...] = ()) -> None:
        """Nothing is compiled yet."""
        self.row, self.calls = row, Calls()
        self.kinds = {name: kind for name, kind in kinds().items() if not names or name in names}
        self.grid = Choice(grid="karras", steps=STEPS).make_grid(row.process)
        self.network = counted(forms.conditional(row.process), self.calls)
        self.plain = Compiled(Network(row.process, self.network))
        self.denoisers = {
            name: self._compiled(denoiser(row.process, self.network, kind)) for name, kind in self.kinds.items()
        }

    def _compiled(self, made: Denoiser) -> Compiled:
        # At scale 1 nothing is left of guidance: the same network, and so the same program.
        return self.plain if made == self.plain.inner else Compiled(made)

    def cells(self, column: Column) -> list[Cell]:
        """One for each guidance: where the images end and what they cost."""
        found, unguided = [], functools.cache(lambda name: self._ends(column, self.plain, self.kinds[name].same))
        for name in self.kinds:
            expected = "0" if is_off(name) else f"at most {EXACT}"
            measure = functools.partial(self._measured, column, name, unguided)
            found += judged(place(self.row, column, name), {ENDS: expected}, measure)
        return found

    def _measured(self, column: Column, name: str, unguided: Any) -> dict[str, tuple[float, bool]]:
        kind, process = self.kinds[name], self.row.process
        right = projected_ends(column) if name == "adaptive_projected 2" else unguided(name)
        off = float(np.max(np.abs(self._ends(column, self.denoisers[name], kind.y) - right)))
        sizes = all(n == BATCH * kind.batches(float(process.time(np.asarray(t)))) for n, t in self.calls)
        count = len(self.calls) == column.evaluations(STEPS) * kind.networks
        return {ENDS: (off, sizes and count and off <= (0 if is_off(name) else EXACT))}

    def _ends(self, column: Column, denoise: Compiled, y: Data) -> np.ndarray:
        """Images of the same noise for any guidance; the calls are noted."""
        self.calls.clear()
        rng = np.random.default_rng(8)
        x = float(self.row.process.sigma(np.asarray(self.grid[0, 0]))) * rng.normal(size=(BATCH, *SHAPE))
        end = walk(column.solver(), denoise, self.grid, x, y, lambda i, shape: rng.normal(size=shape))
        jax.effects_barrier()
        return end


def is_off(name: str) -> bool:
    """Whether this guidance is none at all."""
    return name == "none" or name in {f"{guidance} 1" for guidance in GUIDANCE}
