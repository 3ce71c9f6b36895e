"""One update of a network's parameters, whatever the task: gradient, guard, optimizer, averages, what is told of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from archirf_jax.errors import UserError
from archirf_jax.training import ema, guard, optimizers
from archirf_jax.training.state import TrainState

QUARTERS = 4  # of time, whose losses are told apart
INNER = ("t", "raw", "index")  # known of examples, and not worth a mean
LARGEST = ("attention_logit",)  # of whose parts the largest is told
# parameters, what was drawn for some examples, the number of the part that they are -> losses (B,), and what else is
# worth knowing, each (B,).
Losses = Callable[[Any, Any, Any], tuple[jax.Array, dict[str, jax.Array]]]
# A metric of a step is (2,): a sum and its weight. The mean over steps is the one sum over the other.
Metrics = dict[str, jax.Array]


def keep(memory: Any, aux: dict[str, jax.Array]) -> Any:
    """A memory as it was."""
    del aux
    return memory


class Update:
    """The optimizer, schedule (unless another is given), guard and averages of a configuration.

    Raises:
        UserError: an unknown name, or values that do not fit.
    """

    def __init__(self, config: Any, schedule: optax.Schedule | None = None) -> None:
        self._config = config
        self._decay, self._beside = ema.warmed(config.ema.decay), ema.beside(config.ema)
        self._schedule = schedule or optimizers.make_schedule(config)
        self._optimizer = optimizers.make_optimizer(config, self._schedule)
        self._scaled = config.model.get("dtype") == "float16"
        guard.check(config.guard)
        if config.accumulation < 1 or config.batch_size % config.accumulation:
            raise UserError(
                f"config.accumulation: {config.accumulation} does not divide batch_size={config.batch_size}; "
                "choose a divisor of it"
            )

    @property
    def schedule(self) -> optax.Schedule:
        """Updates done before -> learning rate."""
        return self._schedule

    def init(self, params: Any, memory: Any = ()) -> TrainState:
        """The state before the first step."""
        averages = {name: _copy(params) for name in self._beside}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema=_copy(params),
            opt=self._optimizer.init(params),
            memory=memory,
            averages=averages,
            guard=guard.init(self._scaled),
        )

    def __call__(
        self,
        state: TrainState,
        drawn: Any,
        losses: Losses,
        constrained: Callable[[Any], Any],
        remember: Callable[[Any, dict[str, jax.Array]], Any] = keep,
    ) -> tuple[TrainState, Metrics]:
        """(the next state, metrics of the step).

        Args:
            state: before the step.
            drawn: what the losses are computed from, a pytree with leading axis B.
            losses: see `Losses`.
            constrained: holds parameters to a law. It acts before the step and not after it, so that averages are of
                weights as the optimizer leaves them.
            remember: makes the next memory of the last one and what `losses` gave beside losses.
        """
        start = constrained(state.params)
        loss, each, aux, gradients = self._gradients(start, drawn, losses, state.guard.scale)
        grad_norm = optax.tree.norm(gradients)
        watch, fine = guard.watch(state.guard, loss, grad_norm, self._config.guard, self._scaled)
        updates, opt = self._optimizer.update(gradients, state.opt, start)
        params = optax.apply_updates(start, updates)
        after = self._averaged(state, params, opt, remember(state.memory, aux))
        # Chosen leaf by leaf, which costs nothing inside the optimizer's own loops.
        after = jax.tree.map(lambda new, old: jnp.where(fine, new, old), after, state)
        after = dataclasses.replace(after, guard=watch, step=state.step + (watch.stopped == 0))

        metrics = {
            "loss": _pair(loss),
            "learning_rate": _pair(self._schedule(state.guard.updates)),
            **_norms("grad_norm", gradients),
            **_norms("update_norm", updates),
            **_norms("param_norm", params),
            **self._noise(state, gradients, grad_norm),
            **by_time(aux, each),
            **{name: _pair(_told(name, value)) for name, value in aux.items() if name not in INNER},
        }
        metrics = {name: jnp.where(fine, pair, 0) for name, pair in metrics.items()}
        told = {"skipped": _pair(~fine), "stopped": _pair(watch.stopped)}
        return after, metrics | told | ({"loss_scale": _pair(state.guard.scale)} if self._scaled else {})

    def _averaged(self, state: TrainState, params: Any, opt: Any, memory: Any) -> TrainState:
        """The state with new parameters, optimizer and memory, and the averages that follow from them."""
        shown, done = optimizers.evaluation_params(opt, params), state.guard.updates
        followed = params if shown is None else shown
        average = ema.update(state.ema, params, self._decay(done)) if shown is None else shown
        averages = {name: ema.update(old, followed, self._beside[name](done)) for name, old in state.averages.items()}
        return dataclasses.replace(state, params=params, opt=opt, memory=memory, ema=average, averages=averages)

    def _gradients(
        self, params: Any, drawn: Any, losses: Losses, scale: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array], Any]:
        """(mean loss, losses (B,), what is known beside them, gradient of the mean)."""
        parts = self._config.accumulation

        def mean_loss(params: Any, part: Any, number: Any) -> tuple[jax.Array, Any]:
            each, aux = losses(params, part, number)
            mean = jnp.mean(each)
            return mean * scale if self._scaled else mean, (mean, each, aux)

        compute = jax.grad(mean_loss, has_aux=True)
        if parts == 1:
            gradients, (loss, each, aux) = compute(params, drawn, 0)
        else:
            # Every parts-th example: each device has its share of each part, and nothing moves between them.
            divided = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), drawn)

            def add(total: Any, numbered: Any) -> tuple[Any, Any]:
                part, number = numbered
                gradients, told = compute(params, part, number)
                return jax.tree.map(lambda a, g: a + g / parts, total, gradients), told

            zeros = jax.tree.map(jnp.zeros_like, params)
            gradients, (means, *told) = jax.lax.scan(add, zeros, (divided, jnp.arange(parts)))
            loss = jnp.mean(means)
            each, aux = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1), told)
        if self._scaled:
            gradients = jax.tree.map(lambda g: g / scale, gradients)
        return loss, each, aux, gradients

    def _noise(self, state: TrainState, gradients: Any, grad_norm: jax.Array) -> Metrics:
        """The gradient noise scale in images (McCandlish et al. 2018, Eq. 2.8): noise over signal, as sums.

        With g the batch's gradient and m the mean of those before, E|g|^2 = |G|^2 + S / B and E<g, m> = |G|^2.
        """
        done = state.guard.updates
        along = optimizers.agreement(self._config.optimizer, state.opt, gradients, done)
        if along is None:
            return {}
        limit = self._config.optimizer.clip_norm  # m is of gradients that were cut to it
        cut = jnp.minimum(1, limit / jnp.maximum(grad_norm, 1e-30)) if limit else 1.0
        signal, square = along * cut, jnp.square(grad_norm * cut)
        pair = jnp.stack([self._config.batch_size * (square - signal), signal])
        return {"noise_scale": jnp.where(done > 0, pair, 0)}


def _copy(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)


def _pair(value: Any) -> jax.Array:
    return jnp.stack([jnp.asarray(value, jnp.float32), jnp.float32(1)])


def _told(name: str, values: jax.Array) -> jax.Array:
    return jnp.max(values) if name in LARGEST else jnp.mean(values.astype(jnp.float32))


def _norms(name: str, tree: Any) -> Metrics:
    """The norm of the whole, and of its groups: layers of one name, whatever their number."""
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        group = re.sub(r"_\d+$", "", path[0].key)
        squares[group] = squares.get(group, 0.0) + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    whole = {name: _pair(jnp.sqrt(sum(squares.values())))}
    return whole | {f"{name}/{group}": _pair(jnp.sqrt(square)) for group, square in squares.items()}


def by_time(aux: dict[str, jax.Array], losses: jax.Array) -> Metrics:
    """Losses of the quarters of time, without the weights of the times where they are known."""
    if "t" not in aux:
        return {}
    values, quarter = aux.get("raw", losses), jnp.clip(aux["t"] * QUARTERS, 0, QUARTERS - 1).astype(jnp.int32)
    inside = [(quarter == i).astype(jnp.float32) for i in range(QUARTERS)]
    return {
        f"loss_t/{i / QUARTERS:g}_{(i + 1) / QUARTERS:g}": jnp.stack([jnp.sum(values * each), jnp.sum(each)])
        for i, each in enumerate(inside)
    }
