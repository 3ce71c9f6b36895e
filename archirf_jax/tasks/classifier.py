"""Training a classifier of noisy images, whose gradient guides samplers (Dhariwal & Nichol 2021, Sec. 4)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import sharding
from archirf_jax.data.pipeline import Batch
from archirf_jax.errors import UserError
from archirf_jax.samplers.denoisers import LogProbability, classifier_gradient
from archirf_jax.tasks.building import apply_telling, dropout_rngs, make_model, make_process
from archirf_jax.training.state import TrainState
from archirf_jax.training.update import Losses, Metrics, Update
from archirf_jax.visuals.pictures import to_uint8

SHOWN = 0.5  # time of the previews' noise
FRAMES = 20
NOISELESS = 1e-3  # time of images that are taken as they are


class Noisy(NamedTuple):
    """Noisy images x (B, H, W, C) of times t (B,), the weights of their losses (B,) and their labels (B,)."""

    x: jax.Array
    t: jax.Array
    weight: jax.Array
    label: jax.Array


class Classifier:
    """The task of a resolved configuration (data.num_classes known).

    Raises:
        UserError: a name, field or size that does not fit.

    Attributes:
        image_shape: (H, W, C) of one image.
        model: (x (B, H, W, C), network times (B,)) -> logits (B, num_classes).
        process: what the images go through.
    """

    use = "--workdir=RUN --classifier={workdir}"  # what `sample` is told of a run

    def __init__(self, config: Any) -> None:
        self.image_shape = (config.data.image_size, config.data.image_size, config.data.channels)
        self.model, self.process = make_model(config), make_process(config)
        if not hasattr(self.model, "features"):
            raise UserError(f"config.model.name: {config.model.name} is no classifier; take adm_classifier")
        self._config = config
        self._slopes = jax.jit(self._gradients)  # one program for all times
        jax.eval_shape(self.init_params, jax.random.key(0))  # what does not fit is known before a run begins

    @functools.cached_property
    def update(self) -> Update:
        """How parameters are trained; only a run that trains needs to know."""
        return Update(self._config)

    def init_params(self, key: jax.Array) -> Any:
        """Fresh parameters."""
        return self.model.init(key, jnp.zeros((1, *self.image_shape)), jnp.zeros(1))["params"]

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step."""
        return self.update.init(self.init_params(key))

    def step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One update on the cross-entropy of noisy images, and its metrics."""
        return self.update(state, self.draw(state, batch, key), self.losses(key), self.constrained)

    def draw(self, state: TrainState, batch: Batch, key: jax.Array) -> Noisy:
        """What the losses of a batch are computed from."""
        del state
        key_t, key_eps = jax.random.split(key)
        t, weight = self.process.sample_times(key_t, len(batch.image), self.process.init_memory())
        x = self.process.noised(batch.image, jax.random.normal(key_eps, batch.image.shape), t)
        return Noisy(x, t, weight, batch.label)

    def losses(self, key: jax.Array | None) -> Losses:
        """The losses of what was drawn; `key` is the step's, None = without dropout."""

        def losses(params: Any, drawn: Noisy, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            seen, rngs = self.process.network_input(drawn.x, drawn.t), dropout_rngs(key, part)
            logits, told = apply_telling(self.model, params, seen, self.process.network_time(drawn.t), rngs=rngs)
            missed = -_chosen(jax.nn.log_softmax(logits), drawn.label)
            right = jnp.argmax(logits, axis=-1) == drawn.label
            aux = {"accuracy": right, "t": drawn.t, "raw": missed}
            return drawn.weight * missed, aux | {name: jnp.full_like(missed, value) for name, value in told.items()}

        return losses

    def constrained(self, params: Any) -> Any:
        """The parameters as they are."""
        return params

    def log_p(self, params: Any) -> LogProbability:
        """log p(y | x_t) (B,) for x (B, H, W, C), network times t (B,) and labels y (B,)."""
        return lambda x, t, y: _chosen(jax.nn.log_softmax(self._logits(params, x, t)), y)

    def features(self, params: Any, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> the map (B, h, w, D) before the classifier's pooling, as if noiseless."""
        t = jnp.full(len(images), NOISELESS)
        seen = self.process.network_input(images, t)
        return self.model.apply({"params": params}, seen, self.process.network_time(t), method="features")

    def log_classes(self, params: Any, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> log p(y | image) (B, num_classes), as if noiseless."""
        t = self.process.network_time(jnp.full(len(images), NOISELESS))
        return jax.nn.log_softmax(self._logits(params, images, t))

    def preview(self, state: TrainState, key: jax.Array) -> np.ndarray:
        """(classes, per_class, H, W, C) uint8: where the same noise has to change to become more of each class."""
        return self._pictures(state, key, SHOWN)

    def animate(self, state: TrainState, key: jax.Array) -> np.ndarray:
        """(frames, classes, per_class, H, W, C) uint8: the same from much noise to none."""
        return np.stack([self._pictures(state, key, t) for t in np.linspace(1, 0, FRAMES + 1)[:-1]])

    def _pictures(self, state: TrainState, key: jax.Array, t: float) -> np.ndarray:
        rows = min(self._config.sample.classes, self._config.data.num_classes)
        columns = self._config.sample.per_class
        noise = self.process.prior(key, (columns, *self.image_shape), jnp.float32(t))
        labels = jnp.repeat(jnp.arange(rows), columns)
        x = jnp.tile(noise, (rows, 1, 1, 1))
        slopes = sharding.fetch(self._slopes(state.ema, x, jnp.full(len(x), t), labels))
        largest = np.max(np.abs(slopes), axis=(1, 2, 3), keepdims=True)
        return to_uint8(slopes / np.maximum(largest, 1e-12)).reshape(rows, columns, *self.image_shape)

    def _gradients(self, params: Any, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        return classifier_gradient(self.process, self.log_p(params), x, t, labels)

    def _logits(self, params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        seen = self.process.network_input(x, self.process.time(t))
        return self.model.apply({"params": params}, seen, t)


def _chosen(values: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, labels[:, None], axis=-1)[:, 0]


build = Classifier
