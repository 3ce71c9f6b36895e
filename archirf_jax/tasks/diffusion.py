"""Training and sampling an image model: where a network meets a process, an optimizer and a sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from archirf_jax import models, processes, registry
from archirf_jax.data.pipeline import Batch
from archirf_jax.errors import UserError
from archirf_jax.processes.base import ModelFn
from archirf_jax.samplers import grids, guidance, solvers
from archirf_jax.samplers.sample import sample
from archirf_jax.training import ema, optimizers
from archirf_jax.training.state import TrainState
from archirf_jax.visuals.pictures import to_uint8

# (params, keys (B,), labels (B,)) -> images (B, H, W, C), or (N + 1, B, H, W, C) with the trajectory.
Sampler = Callable[[Any, jax.Array, jax.Array], jax.Array]
DTYPES = ("float32", "bfloat16")


class Diffusion:
    """The task of a resolved configuration (data.num_classes known).

    Raises:
        UserError: a name, field or size that does not fit.

    Attributes:
        image_shape: (H, W, C) of one image.
        model: the network.
        process: what it learns.
        null: the null label, () int32.
    """

    def __init__(self, config: Any) -> None:
        data = config.data
        fields = _rest(config.model)
        if fields.get("dtype", "float32") not in DTYPES:
            raise UserError(f"config.model.dtype: {fields['dtype']!r} is not one of {', '.join(DTYPES)}")
        self.image_shape = (data.image_size, data.image_size, data.channels)
        self.model = registry.build(
            models, "config.model.name", config.model.name, fields | {"num_classes": data.num_classes}
        )
        self.process = registry.build(processes, "config.process.name", config.process.name, _rest(config.process))
        self.null = np.int32(data.num_classes)
        self._config = config
        self._schedule = optimizers.make_schedule(config)
        self._optimizer = optimizers.make_optimizer(config, self._schedule)
        jax.eval_shape(self.init_params, jax.random.key(0))  # a size that does not fit is known before a run begins
        self._preview = self.sampler(trajectory=False)
        self._animation = self.sampler(trajectory=True)

    def model_fn(self, params: Any) -> ModelFn:
        """The network with its parameters bound."""
        return lambda x, t, y: self.model.apply({"params": params}, x, t, y)

    def init_params(self, key: jax.Array) -> Any:
        """Fresh parameters."""
        x = jnp.zeros((1, *self.image_shape))
        return self.model.init(key, x, jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step."""
        params = self.init_params(key)
        average = jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=average, opt=self._optimizer.init(params))

    def step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update; metrics are scalars, norms are global."""

        def mean_loss(params: Any) -> jax.Array:
            losses, _ = self.process.loss(key, self.model_fn(params), batch.image, batch.label, self.null)
            return jnp.mean(losses)

        loss, gradients = jax.value_and_grad(mean_loss)(state.params)
        updates, opt = self._optimizer.update(gradients, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        average = ema.update(state.ema, params, self._config.ema.decay, state.step)
        metrics = {
            "loss": loss,
            "learning_rate": jnp.asarray(self._schedule(state.step), jnp.float32),
            "grad_norm": optax.tree.norm(gradients),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
        }
        return TrainState(step=state.step + 1, params=params, ema=average, opt=opt), metrics

    def sampler(
        self,
        *,
        solver: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        trajectory: bool = False,
    ) -> Sampler:
        """A compiled sampler; what is None comes from `config.sample`.

        Raises:
            UserError: an unknown solver, or a value outside its range.
        """
        choice = self._config.sample
        scale = choice.guidance_scale if guidance_scale is None else guidance_scale
        if not 0 <= scale < math.inf:
            raise UserError(f"guidance_scale: {scale} must be a finite number, 0 or more; 1 is off")
        method = registry.build(solvers, "config.sample.solver", choice.solver if solver is None else solver)
        grid = grids.linspace(choice.steps if steps is None else steps, choice.shift)

        def run(params: Any, keys: jax.Array, labels: jax.Array) -> jax.Array:
            model_fn = guidance.classifier_free(self.model_fn(params), self.null, scale)
            return sample(
                keys, self.process, model_fn, labels, self.image_shape, grid=grid, solver=method, trajectory=trajectory
            )

        return jax.jit(run)

    def preview(self, state: TrainState, key: jax.Array) -> np.ndarray:
        """(classes, per_class, H, W, C) uint8 samples of the EMA, one row a class, the same noise for the same key."""
        return self._pictures(self._preview, state, key)

    def animate(self, state: TrainState, key: jax.Array) -> np.ndarray:
        """(steps + 1, classes, per_class, H, W, C) uint8: the same pictures on their way from noise."""
        return self._pictures(self._animation, state, key)

    def _pictures(self, sampler: Sampler, state: TrainState, key: jax.Array) -> np.ndarray:
        rows, columns = min(self._config.sample.classes, int(self.null)), self._config.sample.per_class
        labels, keys = class_grid(key, range(rows), columns)
        images = to_uint8(np.asarray(sampler(state.ema, keys, labels)))
        return images.reshape(*images.shape[:-4], rows, columns, *self.image_shape)


def class_grid(key: jax.Array, classes: Any, per_class: int) -> tuple[jax.Array, jax.Array]:
    """Labels (classes * per_class,) int32 and one key an image, which depends on its label and number alone."""
    labels = jnp.repeat(jnp.asarray(list(classes), jnp.int32), per_class)
    numbers = jnp.tile(jnp.arange(per_class), len(labels) // per_class)
    keys = jax.vmap(lambda label, number: jax.random.fold_in(jax.random.fold_in(key, label), number))(labels, numbers)
    return labels, keys


def _rest(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "name"}


build = Diffusion
