"""How a diffusion model is sampled: denoisers, samplers and previews of a task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import sharding
from archirf_jax.conditioners.merged import Merged
from archirf_jax.contracts import (
    Batch,
    Condition,
    Denoiser,
    FirstStage,
    Frozen,
    ModelFn,
    Objective,
    TrainState,
)
from archirf_jax.data.fields import Fields, shapes
from archirf_jax.data.images import to_uint8
from archirf_jax.errors import UserError
from archirf_jax.objectives.dropping import drops
from archirf_jax.processes.base import Process
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.sample import sample
from archirf_jax.tasks import building

FRAMES = 50  # most states after the start that a preview keeps
Params = dict[str, Any]
Sampler = Callable[[Params, Frozen, Batch, jax.Array], jax.Array]


class Traced(NamedTuple):
    """Shapes of x0 and conditions for one example, and the fields of the batch that the conditions are made of."""

    x0: jax.ShapeDtypeStruct
    condition: dict[str, jax.ShapeDtypeStruct]
    fields: frozenset[str]


class Recording(dict):
    """A batch that keeps which fields are asked for."""

    def __init__(self, batch: Batch, asked: set[str]) -> None:
        super().__init__(batch)
        self._asked = asked

    def __getitem__(self, name: str) -> jax.Array:
        self._asked.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._asked.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The field, or `default`."""
        return self[name] if name in self else default


class Drawing:
    """The half of `Diffusion` that encodes and draws; attributes as there."""

    frozen: dict[str, Any]
    process: Process
    objective: Objective
    conditioner: Merged
    first_stage: FirstStage
    fields: Fields
    sampling: SamplerConfig
    examples: Batch | None
    config: Any
    row_names: Sequence[str] = ()  # of the rows of previews: classes, or captions
    captions: Sequence[str] = ()  # that previews have one row each of, in the order of `examples`

    def model_fn(
        self, params: Params, dropout: jax.Array | None = None, *, higher_derivatives: bool = False
    ) -> ModelFn:
        """The network with its parameters bound."""
        raise NotImplementedError

    def encoded(self, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[jax.Array, Condition]:
        """(x0, conditions) of a batch; frozen networks see it in as many parts as the gradient is computed in."""
        count = len(next(iter(batch.values())))

        def encode(batch: Batch, first: jax.Array, second: jax.Array) -> Any:
            return self.first_stage.encode(frozen, batch, first), self.conditioner(frozen, batch, second)

        keys = (building.example_keys(key, purpose, count) for purpose in ("first_stage", "condition"))
        parts = self.config.get("accumulation", 1) if frozen else 1
        x0, condition = building.in_parts(encode, parts if count % parts == 0 else 1, batch, *keys)
        return x0, condition

    def network_denoiser(self, params: Params, *, higher_derivatives: bool = False) -> Denoiser:
        """The network as a denoiser, without guidance; likelihoods need forward-mode derivatives of it."""
        return NetworkDenoiser(self.process, self.model_fn(params, higher_derivatives=higher_derivatives))

    def denoiser(
        self,
        config: SamplerConfig,
        params: Params,
        frozen: Frozen,
        null: Condition | None = None,
        weak: Denoiser | None = None,
        log_p: Any = None,
    ) -> Denoiser:
        """The network under the guidance and threshold of `config`.

        Args:
            config: how.
            params: by module.
            frozen: parameters of the frozen runs.
            null: what stands for no condition; None = the conditioners' own.
            weak: the weaker network of autoguidance.
            log_p: the classifier that guides, (x, process time, condition) -> (B,).

        Raises:
            UserError: guidance that this network cannot have.
        """
        self.check_guidance(config)
        null = self.conditioner.null(frozen) if null is None else null
        return config.make_denoiser(self.network_denoiser(params), null, weak, log_p)

    def check_guidance(self, config: SamplerConfig) -> None:
        """Raise a UserError if `config` asks the network for images without condition, which it never saw."""
        if config.asks_null:
            self.check_null("sample.guidance.scale", config.guidance_scale)

    def check_null(self, field: str, value: Any) -> None:
        """Raise a UserError about `field` if the network never saw images without condition."""
        if self.objective.guidance != "outside":
            what = f"must be 1: this network was trained with guidance {self.objective.guidance}"
            raise UserError(field, value, what)
        if not drops(getattr(self.objective, "condition_dropout", 1.0)):
            raise UserError(
                *(field, value),
                "needs a network that was also trained without conditions, and objective.condition_dropout is 0; train "
                "with 0.1, or sample with a guidance scale of 1",
            )

    def sampler(self, config: SamplerConfig, stride: int = 0) -> Sampler:
        """A compiled (params, frozen, batch, keys (B,)) -> x0 (B, ...), the same one again for the same arguments.

        Args:
            config: how.
            stride: 0, or return also the start and every stride-th state before it, as `samplers.sample`.

        Raises:
            UserError: parts of the description that do not fit this process or network.
        """
        self.check_guidance(config)
        return self._sampler(config, stride)

    @functools.cache  # noqa: B019 - a task lives as long as its programs
    def _sampler(self, config: SamplerConfig, stride: int) -> Sampler:
        solver, grid = config.make_solver(), config.make_grid(self.process)

        def run(params: Params, frozen: Frozen, batch: Batch, keys: jax.Array) -> jax.Array:
            denoise = self.denoiser(config, params, frozen)
            condition = self.conditioner(frozen, batch, keys)
            how: dict[str, Any] = dict(grid=grid, solver=solver, stride=stride, hoist=config.hoist)
            return sample(keys, denoise, condition, self.shape, **how)

        return jax.jit(run)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x0."""
        return tuple(self._traced.x0.shape[1:])

    @functools.cached_property
    def needs(self) -> frozenset[str]:
        """The fields of a batch that the conditions are made of."""
        return self._traced.fields

    @functools.cached_property
    def usual(self) -> frozenset[str]:
        """The fields for which conditioners have values of their own when an image is drawn."""
        return frozenset().union(*(getattr(part, "usual", ()) for part in self.conditioner.parts.values()))

    @property
    def labels_alone(self) -> bool:
        """Whether labels suffice to draw images."""
        return self.needs - self.usual <= {"label"}

    def without_usual(self, batch: Batch) -> Batch:
        """A batch of examples as images are drawn from it."""
        return {name: leaf for name, leaf in batch.items() if name not in self.usual}

    @functools.cached_property
    def condition_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the conditions of one example, with its leading axis."""
        return self._traced.condition

    @functools.cached_property
    def null_names(self) -> frozenset[str]:
        """The keys of conditions that may be dropped."""
        return frozenset(jax.eval_shape(self.conditioner.null, self.frozen_shapes))

    @property
    def num_classes(self) -> int:
        """Labels are 0..num_classes-1."""
        return int(self.config.data.num_classes)

    @property
    def frozen_shapes(self) -> dict[str, Any]:
        """Shapes of the frozen runs' parameters, by name."""
        return {name: run.shapes or run.params for name, run in self.frozen.items()}

    @functools.cached_property
    def _traced(self) -> Traced:
        read: set[str] = set()

        def trace(frozen: Frozen, batch: Batch, keys: jax.Array) -> Any:
            x0 = self.first_stage.encode(frozen, batch, keys)
            return x0, self.conditioner(frozen, Recording(batch, read), keys)

        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        x0, condition = jax.eval_shape(trace, self.frozen_shapes, shapes(self.fields, 1), keys)
        return Traced(x0, condition, frozenset(read))

    def preview(self, state: TrainState, frozen: Frozen, key: jax.Array, stride: int = 0) -> np.ndarray | None:
        """(rows, columns, H, W, C) uint8 samples of the average, one row a class or a caption.

        The noise is the same for the same key. With a stride (frames, rows, columns, H, W, C) on their way from noise,
        the start and at most FRAMES states, which lie on the device together.
        A network that is conditioned on more than labels takes its conditions from `examples`.
        """
        rows, columns = self._grid()
        labels, keys = class_grid(key, range(rows), columns)
        batch: Batch = {"label": labels}
        if not self.labels_alone:
            if self.examples is None:
                return None
            known = self.without_usual(self.examples)
            batch = jax.tree.map(lambda leaf: jnp.resize(leaf, (rows * columns, *leaf.shape[1:])), known)
        # A training ends with a preview on its way: one program for that and for those before.
        program = self.sampler(self.sampling, max(stride, -(-self.sampling.steps // FRAMES)))
        states = program(next(iter(state.networks.values())).averages["ema"], frozen, batch, keys)
        images = to_uint8(sharding.fetch(self.decode(frozen, states if stride else states[-1])))
        return images.reshape(*images.shape[:-4], rows, columns, *images.shape[-3:])

    def decode(self, frozen: Frozen, x0: jax.Array) -> jax.Array:
        """Images (..., H, W, C) of x0 (..., B, ...)."""
        flat = x0.reshape(-1, *x0.shape[x0.ndim - len(self.shape) :])
        images = self.first_stage.decode(frozen, flat)
        return images.reshape(*x0.shape[: x0.ndim - len(self.shape)], *images.shape[1:])

    def _grid(self) -> tuple[int, int]:
        classes = min(self.config.sample.classes, self.config.data.num_classes)
        return len(self.captions) or classes, self.config.sample.per_class


def class_grid(key: jax.Array, classes: Any, per_class: int) -> tuple[jax.Array, jax.Array]:
    """Labels (classes * per_class,) int32 and one key an image, which depends on its label and number alone."""
    return _class_grid(key, np.asarray(list(classes), np.int32), per_class)


@functools.partial(jax.jit, static_argnames="per_class")  # one program, and not ten
def _class_grid(key: jax.Array, classes: jax.Array, per_class: int) -> tuple[jax.Array, jax.Array]:
    labels = jnp.repeat(classes, per_class)
    numbers = jnp.tile(jnp.arange(per_class), len(classes))
    keys = jax.vmap(lambda label, number: jax.random.fold_in(jax.random.fold_in(key, label), number))(labels, numbers)
    return labels, keys
