"""One update of a network's parameters, whatever the task: gradient, optimizer, average, norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from archirf_jax.training import ema, optimizers
from archirf_jax.training.state import TrainState

# params -> losses (B,), and what else is worth knowing, each (B,).
Losses = Callable[[Any], tuple[jax.Array, dict[str, jax.Array]]]


class Update:
    """The optimizer, schedule and average of a configuration.

    Raises:
        UserError: an unknown name, or values that do not fit.
    """

    def __init__(self, config: Any) -> None:
        self._decay = config.ema.decay
        self._schedule = optimizers.make_schedule(config)
        self._optimizer = optimizers.make_optimizer(config, self._schedule)

    def init(self, params: Any, memory: Any = ()) -> TrainState:
        """The state before the first step."""
        average = jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)
        opt = self._optimizer.init(params)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=average, opt=opt, memory=memory)

    def __call__(
        self, state: TrainState, losses: Losses, constrained: Callable[[Any], Any]
    ) -> tuple[TrainState, dict[str, jax.Array], dict[str, jax.Array]]:
        """(the next state with its memory as it was, scalar metrics, what `losses` gave beside them).

        `constrained` holds parameters to a law. It acts before the step and not after it, so that the average is one
        of weights as the optimizer leaves them.
        """

        def mean_loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            each, aux = losses(params)
            return jnp.mean(each), aux

        start = constrained(state.params)
        (loss, aux), gradients = jax.value_and_grad(mean_loss, has_aux=True)(start)
        updates, opt = self._optimizer.update(gradients, state.opt, start)
        params = optax.apply_updates(start, updates)
        metrics = {
            "loss": loss,
            "learning_rate": jnp.asarray(self._schedule(state.step), jnp.float32),
            "grad_norm": optax.tree.norm(gradients),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
        }
        average = ema.update(state.ema, params, self._decay, state.step)
        after = TrainState(step=state.step + 1, params=params, ema=average, opt=opt, memory=state.memory)
        return after, metrics, aux
