"""The types that every room agrees on. They hold no logic; docs/architecture.md says why each is as it is.

Times run from t = 0 (data) to t = 1 (noise): x_t = alpha(t) x0 + sigma(t) eps. B is the batch, and every leaf of a
batch, a condition and a draw has it as its leading axis. x may have any rank.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import numpy as np

Batch = dict[str, jax.Array]  # fields of the data, "image" float32 in [-1, 1]; {} for tasks without data
# label (B,); tokens (B, L, D), mask (B, L) True = a token, pooled (B, P); low_res (B, h, w, C), noise_level (B,) its
# process time; size (B, n); image_embedding (B, D); guidance_scale (B,), guidance_interval (B, 2). Others are free: a
# network ignores those that it does not read.
Condition = dict[str, jax.Array]
Extras = dict[str, jax.Array]  # what a module sows by name: heads and features (B, ...), diagnostics ()
Params = Any  # a pytree of parameters
Frozen = Mapping[str, Params]  # parameters of the frozen runs by name
Metrics = dict[str, jax.Array]  # each (2,): a sum and its weight; their quotient is the mean


class ModelFn(Protocol):
    """A network with its parameters bound; t and s are network times (B,)."""

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: Condition, *, s: jax.Array | None = None
    ) -> tuple[jax.Array, Extras]:
        """The answer to x (B, ...) at t, which leads to the time s (None = t), and what the network sows."""


class Prediction(NamedTuple):
    """What is known about x_t; each like x.

    Attributes:
        x0: the data.
        eps: the noise.
        variance: where between the smallest (0) and the largest (1) the log-variance of an ancestral step lies;
            None where the network does not learn it.
    """

    x0: jax.Array
    eps: jax.Array
    variance: jax.Array | None = None


class Denoiser(Protocol):
    """What solvers ask: a process and a network, with guidance, thresholds and masks around them."""

    @property
    def process(self) -> Any:
        """The process of x."""

    def init(self, x: jax.Array) -> Any:
        """The state before the first evaluation: a pytree, () where none is needed."""

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: Condition, state: Any, *, s: jax.Array | None = None
    ) -> tuple[Prediction, Any]:
        """The prediction for x (B, ...) at process time t, () or (B,), on the way to s, and the next state."""


class Solver(Protocol):
    """How x gets from one time to the next; a solver of one evaluation a step passes s=t_next, others None."""

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The solver's state before the first step, the denoiser's within it.

        Raises:
            UserError: the solver cannot take these steps with this denoiser.
        """

    def step(
        self,
        noise: jax.Array,
        denoise: Denoiser,
        x: jax.Array,
        t: jax.Array,
        t_next: jax.Array,
        condition: Condition,
        solver_state: Any,
    ) -> tuple[jax.Array, Any]:
        """x at scalar time t -> x at t_next with fresh standard normal noise like x, and the next state."""


class Models(NamedTuple):
    """Networks that an objective may ask.

    Attributes:
        online: the network that is trained.
        average: its moving average; its parameters are constants, gradients pass through its inputs.
        teacher: a frozen run as a denoiser, likewise; None without one.
    """

    online: ModelFn
    average: ModelFn | None = None
    teacher: Denoiser | None = None


class Setting(NamedTuple):
    """What drawing and losses need and what has no batch axis.

    Attributes:
        process: between data and noise.
        null: the condition that stands for none, without batch axis, of the keys that may be dropped.
        step: () int32 steps done.
        objective_state: what the objective keeps between steps.
    """

    process: Any
    null: Condition
    step: jax.Array
    objective_state: Any = ()


class Objective(Protocol):
    """A loss: how times and noise are drawn, what is asked of the network, and what is kept between steps.

    Attributes:
        couples_examples: losses depend on the whole batch, so that accumulation is refused.
        higher_derivatives: attention and convolutions must have forward-mode and second derivatives.
        guidance: whether the network is guided "outside" (by the sampler), or learned guidance "inside" or as "input".
    """

    couples_examples: bool
    higher_derivatives: bool
    guidance: str

    def wrap(self, module: Any) -> Any:
        """The module with the heads that are trained with it."""

    def init(self) -> Any:
        """The objective's state before the first step; () for none."""

    def draw(self, key: jax.Array, setting: Setting, x0: jax.Array, condition: Condition) -> Any:
        """Everything random about a batch's losses: a pytree with leading axis B, conditions dropped in it."""

    def losses(self, models: Models, setting: Setting, drawn: Any) -> tuple[jax.Array, Metrics, dict[str, jax.Array]]:
        """(losses (B,), metrics, what `remember` is to know of each example (B, ...))."""

    def remember(self, objective_state: Any, noted: dict[str, jax.Array]) -> Any:
        """The state after a step; `noted` covers the whole batch in its order."""


class FirstStage(Protocol):
    """What is diffused instead of the image; acts on each example alone."""

    def encode(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> jax.Array:
        """x0 (B, ...) of a batch, with one key an example."""

    def decode(self, frozen: Frozen, x0: jax.Array) -> jax.Array:
        """Images (B, H, W, C) around [-1, 1]."""


class Conditioner(Protocol):
    """From a batch to conditions; acts on each example alone. A key that the batch already holds is taken as given.

    It may have an attribute `usual`: names of fields that images to be drawn are not given from examples of the data
    set, because it has values of its own for them.
    """

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        """Conditions (B, ...) of a batch, with one key an example, in training and sampling alike."""

    def null(self, frozen: Frozen) -> Condition:
        """What stands for no condition, without batch axis, of the keys that may be dropped."""


@flax.struct.dataclass
class Guard:
    """What watches over the updates of a network; each ().

    Attributes:
        updates: int32, how many changed the parameters; schedules and averages count these.
        skipped: int32, how many did not, because a loss or gradient was not finite.
        in_a_row: int32, of the latest skipped ones.
        stopped: int32, 0 or the reason (`guard.REASONS`) why the step of this state must not be done.
        mean, spread: float32, running mean of the losses and of their squared distance from it.
        scale: float32, what losses are multiplied with for float16 gradients; 1 for other dtypes.
        steady: int32, updates since the scale changed.
    """

    updates: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array
    stopped: jax.Array
    mean: jax.Array
    spread: jax.Array
    scale: jax.Array
    steady: jax.Array


@flax.struct.dataclass
class Network:
    """What one optimizer trains.

    Attributes:
        params: parameters of each module by name.
        averages: moving averages like `params`, float32, by name; "ema" is the one that samples are drawn with.
        opt: the optimizer's state.
        guard: see `Guard`.
        objective_state: what the objective keeps between steps.
    """

    params: dict[str, Params]
    averages: dict[str, dict[str, Params]]
    opt: Any
    guard: Any = ()
    objective_state: Any = ()


@flax.struct.dataclass
class TrainState:
    """What a run carries from step to step: every field of every network is a part of its checkpoints.

    Attributes:
        step: () int32, steps done.
        networks: by name, the main one first.
    """

    step: jax.Array
    networks: dict[str, Network]


# (parameters by module, what was drawn for some examples, the number of the part that they are)
# -> losses (B,), metrics, noted (B, ...).
Losses = Callable[[dict[str, Params], Any, Any], tuple[jax.Array, Metrics, dict[str, jax.Array]]]


class Task(Hashable, Protocol):
    """What is trained: where networks meet processes, objectives and data.

    One task is one key of the programs made of it: it is hashable, and does not change after it is built.
    """

    @property
    def frozen(self) -> Mapping[str, Any]:
        """Runs that it needs and never changes, by name."""

    @property
    def updates(self) -> Mapping[str, Any]:
        """Network's name -> how it is trained, the main one first."""

    def init(self, key: jax.Array, frozen: Frozen) -> TrainState:
        """The state before the first step."""

    def losses(
        self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array, network: str, train: bool = True
    ) -> tuple[Any, Losses]:
        """(what is drawn for a batch, its losses) of a network; `train` = False drops no units."""

    def step(self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One step and its metrics, whose names are the same at every step."""

    def preview(self, state: TrainState, frozen: Frozen, key: jax.Array, stride: int = 0) -> np.ndarray | None:
        """(rows, columns, H, W, C) uint8, with a stride (frames, rows, ...) on their way; None = nothing to see."""


class Feed(Protocol):
    """Batches in the order that seed and step decide.

    Attributes:
        dispatch: most steps that a chunk may serve.
    """

    dispatch: int

    def chunk(self, step: int, most: int) -> tuple[Any, int]:
        """(what `batch` needs, for how many steps from `step` on): at least 1, at most `most`, all of one shape."""

    def batch(self, chunk: Any, i: jax.Array, key: jax.Array) -> Batch:
        """The i-th batch of the chunk, inside jit; key decides augmentations."""

    def close(self) -> None:
        """Release what the feed holds; the next chunk begins anew."""
