"""Training a classifier of noisy images, whose gradient guides samplers (Dhariwal & Nichol 2021, Sec. 4)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import sharding
from archirf_jax.contracts import Batch, Frozen, Losses, Metrics, TrainState
from archirf_jax.data.fields import make_fields
from archirf_jax.data.images import to_uint8
from archirf_jax.errors import UserError
from archirf_jax.models import binding
from archirf_jax.objectives import metrics
from archirf_jax.samplers.denoisers import LogProbability, classifier_gradient
from archirf_jax.tasks import building
from archirf_jax.training.update import Update, commit

CLASSIFIER = "classifier"
SHOWN = 0.5  # time of the previews' noise
FRAMES = 20
NOISELESS = 1e-3  # time of images without noise
Params = dict[str, Any]


class Noisy(NamedTuple):
    """Noisy images x (B, H, W, C) of times t (B,), the weights of their losses (B,) and their labels (B,)."""

    x: jax.Array
    t: jax.Array
    weight: jax.Array
    label: jax.Array


class Classifier:
    """The task of a resolved configuration (data.num_classes known).

    Raises:
        UserError: a name or field that does not fit.

    Attributes:
        frozen: no runs.
        model, module: (x (B, H, W, C), network times (B,), condition) -> logits (B, num_classes).
        process: the one of the images.
        objective: draws the times.
        fields: of the data, by name.
    """

    main = CLASSIFIER  # the module that is exported
    row_names: Sequence[str] = ()  # of the classes, which previews have one row each of
    use = "--workdir=RUN --classifier={workdir}"  # the arguments of `sample` for a run

    def __init__(self, config: Any, runs: building.Runs) -> None:
        self.frozen = dict(runs)
        self.process = building.make_process(config)
        self.objective: Any = building.make_objective(config, self.process, runs)
        self.model: Any = building.make_model(config)
        self.module = self.model
        if not hasattr(self.model, "features"):
            raise UserError("model.name", config.model.name, "is not a classifier; take adm_classifier")
        # A classifier's loss is its own: what an objective trains or draws besides times would be ignored.
        if not hasattr(self.objective, "sample_times") or self.objective.wrap(self.model) is not self.model:
            raise UserError("objective.name", config.objective.name, "does not train classifiers; take regression")
        self.fields = make_fields(config.data)
        self._shape = (config.data.image_size, config.data.image_size, config.data.channels)
        self._config = config
        self._slopes = jax.jit(self._gradients)  # one program for all times

    def step(self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One update on the cross-entropy of noisy images, and its metrics."""
        drawn, losses = self.losses(state, frozen, batch, key, CLASSIFIER)
        gradient = self.updates[CLASSIFIER].gradient(state.networks[CLASSIFIER], drawn, losses)
        return commit(state, self.updates, {CLASSIFIER: gradient})

    def losses(
        self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array, network: str, train: bool = True
    ) -> tuple[Noisy, Losses]:
        """(noisy images, the losses of them); without `train` no units are dropped."""
        key_t, key_eps = jax.random.split(key)
        t, weight = self.objective.sample_times(key_t, self.process, len(batch["image"]))
        x = self.process.noised(batch["image"], jax.random.normal(key_eps, batch["image"].shape), t)

        def losses(params: Params, drawn: Noisy, part: Any) -> Any:
            dropout = building.dropout_key(key, part) if train else None
            logits, extras = self._ask(params, drawn.x, drawn.t, dropout)
            missed = -_chosen(jax.nn.log_softmax(logits), drawn.label)
            right = metrics.mean(jnp.argmax(logits, axis=-1) == drawn.label)
            reported = {"accuracy": right} | metrics.by_time(missed, drawn.t) | metrics.diagnostics(extras)
            return drawn.weight * missed, reported, {}

        return Noisy(x, t, weight, batch["label"]), losses

    @functools.cached_property
    def updates(self) -> dict[str, Update]:
        """How the classifier is trained; only a run that trains needs to know."""
        return {CLASSIFIER: Update(self._config, CLASSIFIER)}

    def init_params(self, key: jax.Array, frozen: Frozen) -> Params:
        """Fresh parameters, by module."""
        del frozen
        return {CLASSIFIER: binding.init(self.model, key, jnp.zeros((1, *self._shape)), jnp.zeros(1), {})}

    def init(self, key: jax.Array, frozen: Frozen) -> TrainState:
        """The state before the first step."""
        network = self.updates[CLASSIFIER].init(self.init_params(key, frozen))
        return TrainState(step=jnp.zeros((), jnp.int32), networks={CLASSIFIER: network})

    def log_p(self, params: Params) -> LogProbability:
        """log p(y | x_t) (B,) for x (B, H, W, C), process times t (B,) and conditions with a label."""
        return lambda x, t, condition: _chosen(jax.nn.log_softmax(self._ask(params, x, t)[0]), condition["label"])

    def features(self, params: Params, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> the map (B, h, w, D) before the classifier's pooling, as if noiseless."""
        t = jnp.full(len(images), NOISELESS)
        inputs = self.process.network_input(images, t), self.process.network_time(t)
        return self.model.apply({"params": params[CLASSIFIER]}, *inputs, method="features")

    def log_classes(self, params: Params, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> log p(y | image) (B, num_classes), as if noiseless."""
        return jax.nn.log_softmax(self._ask(params, images, jnp.full(len(images), NOISELESS))[0])

    def preview(self, state: TrainState, frozen: Frozen, key: jax.Array, stride: int = 0) -> np.ndarray | None:
        """(classes, per_class, H, W, C) uint8: where the same noise has to change to become more of each class.

        With a stride (frames, classes, ...): the same from much noise to none.
        """
        del frozen
        times = np.linspace(1, 0, FRAMES + 1)[:-1:stride] if stride else [SHOWN]
        frames = np.stack([self._images(state, key, float(t)) for t in times])
        return frames if stride else frames[0]

    def _images(self, state: TrainState, key: jax.Array, t: float) -> np.ndarray:
        rows = min(self._config.sample.classes, self._config.data.num_classes)
        columns = self._config.sample.per_class
        noise = self.process.prior(key, (columns, *self._shape), jnp.float32(t))
        labels = jnp.repeat(jnp.arange(rows), columns)
        x = jnp.tile(noise, (rows, 1, 1, 1))
        params = state.networks[CLASSIFIER].averages["ema"]
        slopes = sharding.fetch(self._slopes(params, x, jnp.full(len(x), t), labels))
        largest = np.max(np.abs(slopes), axis=(1, 2, 3), keepdims=True)
        return to_uint8(slopes / np.maximum(largest, 1e-12)).reshape(rows, columns, *self._shape)

    def _gradients(self, params: Params, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        return classifier_gradient(self.log_p(params), x, t, {"label": labels})

    def _ask(self, params: Params, x: jax.Array, t: jax.Array, dropout: jax.Array | None = None) -> Any:
        """(logits (B, num_classes), what the network sows) for x at process times t."""
        model_fn = binding.bind(self.model, params[CLASSIFIER], dropout=dropout)
        return model_fn(self.process.network_input(x, t), self.process.network_time(t), {})


def _chosen(values: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, labels[:, None], axis=-1)[:, 0]


def build(config: Any, runs: Mapping[str, Any]) -> Classifier:
    """The task of a resolved configuration."""
    return Classifier(config, runs)
