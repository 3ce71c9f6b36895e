"""Training and sampling an image model: where a network meets a process, an optimizer and a sampler."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import sharding
from archirf_jax.data.pipeline import Batch
from archirf_jax.errors import UserError
from archirf_jax.models.uncertainty import Uncertain
from archirf_jax.processes.base import Draw, ModelFn
from archirf_jax.samplers.choice import Choice
from archirf_jax.samplers.denoisers import Inpaint, LogProbability
from archirf_jax.samplers.encode import encode
from archirf_jax.samplers.sample import noise, sample
from archirf_jax.tasks.building import apply_telling, dropout_rngs, make_model, make_process
from archirf_jax.training.state import TrainState
from archirf_jax.training.update import Losses, Metrics, Update
from archirf_jax.visuals.pictures import to_uint8


class Inputs(NamedTuple):
    """What sampling may be given besides conditions; images (H, W, C) in [-1, 1].

    Attributes:
        start: (B, H, W, C) x at the first time of the grid, instead of noise.
        image: an image to start from, noised to the first time.
        known: an image whose pixels hold where `mask` is 0.
        mask: (H, W, 1), 1 where pixels are to be made.
        weak: parameters of the weaker network of autoguidance.
        classifier: parameters of a classifier that guides.
        conditions: what labels stand for, a pytree of tables with a row a label; without it they are classes.
        null: the unconditional twin of a row of `conditions`.
    """

    start: jax.Array | None = None
    image: jax.Array | None = None
    known: jax.Array | None = None
    mask: jax.Array | None = None
    weak: Any = None
    classifier: Any = None
    conditions: Any = None
    null: Any = None


NOTHING = Inputs()
Judge = Callable[[Any], LogProbability]
# (params, keys (B,), labels (B,), inputs) -> images (B, H, W, C); with a stride the states on the way before them.
Sampler = Callable[..., jax.Array]


class Diffusion:
    """The task of a resolved configuration (data.num_classes known).

    Raises:
        UserError: a name, field or size that does not fit.

    Attributes:
        image_shape: (H, W, C) of one image.
        model: the network.
        process: what it learns.
        null: the null label, () int32.
        choice: how it is sampled unless somebody says otherwise.
        example: a condition without batch axis; a label, unless the network takes texts or pictures.
    """

    use = "--workdir={workdir}"  # what `sample` is told of a run

    def __init__(self, config: Any) -> None:
        data = config.data
        self.image_shape = (data.image_size, data.image_size, data.channels)
        self.model, self.process = make_model(config), make_process(config)
        self.null = np.int32(data.num_classes)
        example = getattr(self.model, "example_condition", lambda shape: jnp.int32(0))
        self.example = example(self.image_shape)
        if head := self.process.uncertainty_head():
            self.model = Uncertain(self.model, **head)
        self.choice = _choice(config.sample)
        self._samplers = functools.cache(self._make_sampler)
        self._config = config
        # What does not fit is known before a run begins.
        jax.eval_shape(self._dry_run)
        self._preview = self.sampler(self.choice)
        self._animation = self.sampler(self.choice, stride=1)

    @property
    def takes_conditions(self) -> bool:
        """Whether the network is told more than a label."""
        return isinstance(self.example, dict)

    def model_fn(self, params: Any, dropout: jax.Array | None = None) -> ModelFn:
        """The network with its parameters bound; with a key for dropout as it is trained."""
        rngs = None if dropout is None else {"dropout": dropout}
        return lambda x, t, y: self.model.apply({"params": params}, x, t, y, rngs=rngs)

    @functools.cached_property
    def update(self) -> Update:
        """How parameters are trained; only a run that trains needs to know."""
        if hasattr(self.model, "constrained") and self._config.optimizer.name == "schedule_free_adamw":
            raise UserError(
                "config.optimizer.name: schedule_free_adamw averages weights, which this network holds at a size; "
                "take adam"
            )
        return Update(self._config)

    def init_params(self, key: jax.Array) -> Any:
        """Fresh parameters."""
        x = jnp.zeros((1, *self.image_shape))
        return self.model.init(key, x, jnp.zeros(1), _batch_of_one(self.example))["params"]

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step."""
        return self.update.init(self.init_params(key), self.process.init_memory())

    def step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One update and its metrics."""
        drawn = self.draw(state, batch, key)
        return self.update(state, drawn, self.losses(key), self.constrained, self.process.remember)

    def draw(self, state: TrainState, batch: Batch, key: jax.Array) -> Draw:
        """What the losses of a batch are computed from."""
        return self.process.draw(key, batch.image, batch.label, self.null, state.memory)

    def losses(self, key: jax.Array | None) -> Losses:
        """The losses of what was drawn; `key` is the step's, None = without dropout."""

        def losses(params: Any, drawn: Draw, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            told: dict[str, jax.Array] = {}

            def model_fn(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
                output, numbers = apply_telling(self.model, params, x, t, y, rngs=dropout_rngs(key, part))
                told.update(numbers)
                return output

            each, aux = self.process.losses(model_fn, drawn)
            return each, aux | {name: jnp.full_like(each, value) for name, value in told.items()}

        return losses

    def constrained(self, params: Any) -> Any:
        """The parameters as a step begins with: networks may hold theirs to a law, such as weights of unit variance."""
        return self.model.constrained(params) if hasattr(self.model, "constrained") else params

    def sampler(
        self, choice: Choice, stride: int = 0, weaker: Diffusion | None = None, judge: Judge | None = None
    ) -> Sampler:
        """A compiled sampler, the same one again for the same; with a stride it also returns the start and every
        stride-th state.

        Args:
            choice: how.
            stride: 0 = images alone.
            weaker: the task whose network has the weaker parameters of autoguidance; None = this one.
            judge: makes log p(y | x_t) of the parameters of a classifier that guides.

        Raises:
            UserError: parts of the choice that do not fit this process.
        """
        return self._samplers(choice, stride, weaker, judge)

    def _make_sampler(self, choice: Choice, stride: int, weaker: Diffusion | None, judge: Judge | None) -> Sampler:
        plain, grid = choice.make_solver(), choice.make_grid(self.process)
        if choice.asks_null():
            self.check_null(f"guidance_scale: {choice.guidance_scale:g}")

        def run(params: Any, keys: jax.Array, labels: jax.Array, inputs: Inputs = NOTHING) -> jax.Array:
            weak_fn = None if inputs.weak is None else (weaker or self).model_fn(inputs.weak)
            log_p = None if inputs.classifier is None or judge is None else judge(inputs.classifier)
            solver = plain if log_p is None else choice.make_solver(log_p)
            y, null = labels, self.null
            if inputs.conditions is not None:
                y, null = jax.tree.map(lambda table: table[labels], inputs.conditions), inputs.null
            denoise = choice.make_denoiser(self.process, self.model_fn(params), null, weak_fn, log_p)
            if inputs.mask is not None and inputs.known is not None:
                denoise = Inpaint(denoise, inputs.known, inputs.mask)
            start = inputs.start
            if inputs.image is not None:
                start = self.process.noised(inputs.image, noise(keys, self.image_shape), jnp.asarray(grid[0, 0]))
            return sample(keys, denoise, y, self.image_shape, grid=grid, solver=solver, start=start, stride=stride)

        return jax.jit(run)

    def encoder(self, choice: Choice) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
        """Compiled (params, images (B, H, W, C), labels (B,)) -> x at the first time of the choice's grid."""
        grid = choice.make_grid(self.process)

        def run(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
            denoise = choice.make_denoiser(self.process, self.model_fn(params), self.null)
            return encode(denoise, images, labels, grid=grid)

        return jax.jit(run)

    def check_null(self, what: str) -> None:
        """Raise a UserError if the network never saw images without condition, which `what` asks it for."""
        if not self.process.condition_dropout:
            raise UserError(
                f"{what} needs a network that was also trained without labels, and config.process.condition_dropout is "
                "0; train with 0.1, or sample with guidance_scale 1"
            )

    def preview(self, state: TrainState, key: jax.Array) -> np.ndarray:
        """(classes, per_class, H, W, C) uint8 samples of the EMA, one row a class, the same noise for the same key."""
        return self._pictures(self._preview, state, key)

    def animate(self, state: TrainState, key: jax.Array) -> np.ndarray:
        """(steps + 1, classes, per_class, H, W, C) uint8: the same pictures on their way from noise."""
        return self._pictures(self._animation, state, key)

    def _pictures(self, sampler: Sampler, state: TrainState, key: jax.Array) -> np.ndarray:
        rows, columns = min(self._config.sample.classes, int(self.null)), self._config.sample.per_class
        labels, keys = class_grid(key, range(rows), columns)
        images = to_uint8(sharding.fetch(sampler(state.ema, keys, labels)))
        return images.reshape(*images.shape[:-4], rows, columns, *self.image_shape)

    def _dry_run(self) -> None:
        key, y = jax.random.key(0), _batch_of_one(self.example)
        params, images = self.init_params(key), jnp.zeros((1, *self.image_shape))
        null = self.example if self.takes_conditions else self.null
        self.process.loss(key, self.model_fn(params), images, y, null, self.process.init_memory())
        inputs = NOTHING._replace(conditions=y, null=self.example) if self.takes_conditions else NOTHING
        try:
            self.sampler(self.choice)(params, key[None], jnp.zeros(1, jnp.int32), inputs)
        except UserError as e:
            raise _of_sample(e) from e


def _batch_of_one(example: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], example)


def class_grid(key: jax.Array, classes: Any, per_class: int) -> tuple[jax.Array, jax.Array]:
    """Labels (classes * per_class,) int32 and one key an image, which depends on its label and number alone."""
    labels = jnp.repeat(jnp.asarray(list(classes), jnp.int32), per_class)
    numbers = jnp.tile(jnp.arange(per_class), len(labels) // per_class)
    keys = jax.vmap(lambda label, number: jax.random.fold_in(jax.random.fold_in(key, label), number))(labels, numbers)
    return labels, keys


def _choice(config: Any) -> Choice:
    fields = {field.name for field in dataclasses.fields(Choice)}
    given = {key: value for key, value in config.items() if key in fields}
    interval = tuple(given.get("guidance_interval", (0.0, 1.0)))
    if len(interval) != 2 or not all(isinstance(time, (int, float)) for time in interval):
        raise UserError(f"config.sample.guidance_interval: {interval} must be two times such as (0.2, 0.8)")
    if "grid" not in given and given.get("shift", 1.0) != 1:  # saved when there was one grid, which was shifted
        given["grid"] = "shifted"
    try:
        return Choice(**given | {"guidance_interval": interval})
    except UserError as e:
        raise _of_sample(e) from e


def _of_sample(error: UserError) -> UserError:
    """The same of a field of the configuration; where a choice is made nobody knows who made it."""
    return UserError(f"config.sample.{str(error).removeprefix('config.sample.')}")


build = Diffusion
