"""How a network is trained, whatever the task: gradient, guard, optimizer, averages and the metrics of a step.

A step of several networks takes all their gradients first; it is done when all of them may be, else none is.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from archirf_jax import sharding
from archirf_jax.contracts import Guard, Losses, Metrics, Network, Params, TrainState
from archirf_jax.errors import UserError
from archirf_jax.training import ema, guard, optimizers, overrides

Modules = dict[str, Params]  # parameters by module
Project = Callable[[Modules, Any], Modules]
Remember = Callable[[Any, dict[str, jax.Array]], Any]
Revise = Callable[[Network, dict[str, jax.Array]], tuple[Network, Metrics]]


class Gradient(NamedTuple):
    """What a step would do to a network.

    Attributes:
        value: the gradient of the mean loss, like the parameters.
        start: the projected parameters that it was taken at.
        loss: () mean of the batch.
        norm: () of the gradient.
        metrics: of the losses, and the norms of the gradient and of what would be added to the parameters.
        noted: name -> (B, ...) in the batch's order.
        guard: after the step.
        turn: () whether it is the network's turn.
        fine: () whether all is finite and the loss did not jump; True where it is not the network's turn.
        made: what the optimizer makes of it: (updates, its next state); None where networks take turns.
    """

    value: Modules
    start: Modules
    loss: jax.Array
    norm: jax.Array
    metrics: Metrics
    noted: dict[str, jax.Array]
    guard: Guard
    turn: jax.Array
    fine: jax.Array
    made: tuple[Modules, Any] | None


class Update:
    """The optimizer, schedule, guard and averages of a network.

    Args:
        config: of the run; `config.networks.NETWORK` overrides its groups.
        network: the network's name.
        project: (parameters, objective_state) -> the parameters that a step begins with, such as weights of unit
            length. It acts before a step and not after it, so that averages are of weights as the optimizer leaves
            them.
        remember: (objective_state, noted) -> the next objective_state; None keeps it.
        revise: (network after the step, noted) -> the network that is kept, metrics; None changes nothing. As all of a
            step it counts only if the step is done.

    Raises:
        UserError: an unknown name, or values that do not fit.
    """

    def __init__(
        self,
        config: Any,
        network: str,
        *,
        project: Project | None = None,
        remember: Remember | None = None,
        revise: Revise | None = None,
    ) -> None:
        self._config = own = overrides.of_network(config, network)
        self._project, self._remember, self._revise = project, remember, revise
        self._scaled = own.get("model", {}).get("dtype") == "float16"
        with overrides.naming(config, network):
            self._decay, self._extra = ema.warmed(own.ema.decay), ema.extra_decays(own.ema)
            self._schedule = optimizers.make_schedule(own)
            self._optimizer = optimizers.make_optimizer(own, self._schedule)
            guard.check(own.guard)
        if own.accumulation < 1 or own.batch_size % own.accumulation:
            message = f"does not divide batch_size={own.batch_size}; choose a divisor of it"
            raise UserError("accumulation", own.accumulation, message)

    @property
    def config(self) -> Any:
        """The run's configuration with the network's overrides."""
        return self._config

    @property
    def schedule(self) -> optax.Schedule:
        """Updates done before -> learning rate."""
        return self._schedule

    @property
    def accumulation(self) -> int:
        """Parts that a batch is computed in; an objective that couples examples allows 1 alone."""
        return int(self._config.accumulation)

    def init(self, params: Modules, objective_state: Any = ()) -> Network:
        """The network before the first step."""
        return Network(
            params=params,
            averages={name: _copy(params) for name in ("ema", *self._extra)},
            opt=self._optimizer.init(params),
            guard=guard.init(self._scaled),
            objective_state=objective_state,
        )

    def projected(self, network: Network) -> Modules:
        """The parameters that the network's next step begins with."""
        return self._project(network.params, network.objective_state) if self._project else network.params

    def gradient(self, network: Network, drawn: Any, losses: Losses, turn: bool | jax.Array = True) -> Gradient:
        """What a step would do; see `commit`.

        Args:
            network: before the step.
            drawn: what the losses are computed from, a pytree with leading axis B.
            losses: see `contracts.Losses`.
            turn: () whether the network is trained at this step; without its turn nothing is computed.
        """
        if turn is True:
            return self._gradient(network, drawn, losses)

        @functools.partial(jax.jit, inline=True)  # for its shapes and for its turn it is traced once
        def compute(network: Network, drawn: Any) -> Gradient:
            # A cond that hands over the optimizer's next state would keep a second one in memory.
            return self._gradient(network, drawn, losses)._replace(made=None)

        shapes = jax.eval_shape(compute, network, drawn)

        def idle(network: Network, drawn: Any) -> Gradient:
            del drawn
            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            return nothing._replace(guard=network.guard, fine=jnp.asarray(True))

        return jax.lax.cond(turn, compute, idle, network, drawn)

    def apply(self, network: Network, gradient: Gradient, fine: jax.Array) -> tuple[Network, Metrics]:
        """(the network after the step, its metrics); `fine` says whether the step is done.

        A network whose own gradient was fine, but whose step is not done, keeps everything, its guard too.
        """
        done = fine & gradient.turn
        updates, opt = gradient.made or self._optimizer.update(gradient.value, network.opt, gradient.start)
        params = optax.apply_updates(gradient.start, updates)
        after = self._averaged(network, params, opt)
        if self._remember is not None:
            kept = self._remember(network.objective_state, gradient.noted)
            after = dataclasses.replace(after, objective_state=kept)
        after, revised = self._revise(after, gradient.noted) if self._revise else (after, {})
        # Chosen leaf by leaf, which costs nothing inside the optimizer's own loops.
        after = _where(done, after, network)
        counted = done | ~gradient.fine
        metrics = {
            "loss": _pair(gradient.loss),
            "learning_rate": _pair(self._schedule(network.guard.updates)),
            **_norms("param_norm", params),
            **self._noise(network, gradient.value, gradient.norm),
            **gradient.metrics,
            **revised,
        }
        metrics = {name: jnp.where(done, pair, 0) for name, pair in metrics.items()}
        if self._scaled:
            metrics["loss_scale"] = jnp.where(gradient.turn, _pair(network.guard.scale), 0)
        return dataclasses.replace(after, guard=_where(counted, gradient.guard, network.guard)), metrics

    def _gradient(self, network: Network, drawn: Any, losses: Losses) -> Gradient:
        start = self.projected(network)
        loss, metrics, noted, gradients = self._differentiate(start, drawn, losses, network.guard.scale)
        made = self._optimizer.update(gradients, network.opt, start)
        norms = _norms("grad_norm", gradients) | _norms("update_norm", made[0])
        norm, update_norm = norms["grad_norm"][0], norms["update_norm"][0]
        watch, fine = guard.watch(network.guard, loss, norm, update_norm, self._config.guard, self._scaled)
        return Gradient(gradients, start, loss, norm, metrics | norms, noted, watch, jnp.asarray(True), fine, made)

    def update_norm(self, network: Network, gradients: Modules) -> jax.Array:
        """() of what would be added to the projected parameters."""
        norm: jax.Array = optax.tree.norm(self._optimizer.update(gradients, network.opt, self.projected(network))[0])
        return norm

    def _averaged(self, network: Network, params: Modules, opt: Any) -> Network:
        """The network with new parameters and optimizer state, and the averages that follow from them."""
        shown, done = optimizers.evaluation_params(opt, params), network.guard.updates
        followed = params if shown is None else shown
        first = ema.update(network.averages["ema"], params, self._decay(done)) if shown is None else shown
        further = {
            name: ema.update(network.averages[name], followed, decay(done)) for name, decay in self._extra.items()
        }
        return dataclasses.replace(network, params=params, opt=opt, averages={"ema": first, **further})

    def _differentiate(
        self, params: Modules, drawn: Any, losses: Losses, scale: jax.Array
    ) -> tuple[jax.Array, Metrics, dict[str, jax.Array], Modules]:
        """(mean loss, metrics, noted, gradient of the mean) of a batch, part by part."""
        parts = self.accumulation

        def mean_loss(params: Modules, part: Any, number: Any) -> tuple[jax.Array, Any]:
            each, metrics, noted = losses(sharding.gathered(params), part, number)
            mean = jnp.mean(each)
            return mean * scale if self._scaled else mean, (mean, metrics, noted)

        compute = jax.grad(mean_loss, has_aux=True)
        if parts == 1:
            gradients, (loss, metrics, noted) = compute(params, drawn, 0)
        else:

            def add(total: Modules, numbered: Any) -> tuple[Modules, Any]:
                gradients, found = compute(params, *numbered)
                return jax.tree.map(lambda a, g: a + g / parts, total, gradients), found

            zeros = jax.tree.map(jnp.zeros_like, params)
            numbered = divided(drawn, parts), jnp.arange(parts)
            gradients, (means, metrics, noted) = jax.lax.scan(add, zeros, numbered)
            loss, metrics = jnp.mean(means), jax.tree.map(lambda pair: jnp.sum(pair, axis=0), metrics)
            noted = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), noted)
        if self._scaled:
            gradients = jax.tree.map(lambda g: g / scale, gradients)
        return loss, metrics, noted, gradients

    def _noise(self, network: Network, gradients: Modules, grad_norm: jax.Array) -> Metrics:
        """The gradient noise scale in examples (McCandlish et al. 2018, Eq. 2.8): noise over signal, as sums.

        With g the batch's gradient and m the mean of those before, E|g|^2 = |G|^2 + S / B and E<g, m> = |G|^2.
        """
        done = network.guard.updates
        along = optimizers.agreement(self._config.optimizer, network.opt, gradients, done)
        if along is None:
            return {}
        limit = self._config.optimizer.clip_norm  # m is of gradients that were cut to it
        cut = 1.0 if limit is None else jnp.minimum(1, limit / jnp.maximum(grad_norm, 1e-30))
        signal, square = along * cut, jnp.square(grad_norm * cut)
        pair = jnp.stack([self._config.batch_size * (square - signal), signal])
        return {"noise_scale": jnp.where(done > 0, pair, 0)}


def commit(
    state: TrainState, updates: Mapping[str, Update], gradients: Mapping[str, Gradient]
) -> tuple[TrainState, Metrics]:
    """(the state after the step, its metrics): the step of all networks is done, or that of none.

    A guard that stops leaves everything but `stopped` as it was before the step, so that the step can be looked at.

    Args:
        state: before the step.
        updates: by network, the main one first; metrics of the others carry "NETWORK/" in front.
        gradients: by network.
    """
    fine = functools.reduce(jnp.logical_and, [gradients[name].fine for name in updates])
    networks: dict[str, Network] = {}
    metrics: Metrics = {}
    for name, update in updates.items():
        prefix = f"{name}/" if networks else ""
        networks[name], own = update.apply(state.networks[name], gradients[name], fine)
        metrics |= {prefix + metric: pair for metric, pair in own.items()}
    stopped = functools.reduce(jnp.maximum, [network.guard.stopped for network in networks.values()])
    for name, network in networks.items():
        still = _where(stopped > 0, state.networks[name].guard, network.guard)
        networks[name] = dataclasses.replace(network, guard=still.replace(stopped=network.guard.stopped))
    after = dataclasses.replace(state, step=state.step + (stopped == 0), networks=networks)
    return after, metrics | {"skipped": _pair(~fine), "stopped": _pair(stopped)}


def divided(drawn: Any, parts: int) -> Any:
    """Leaves (B, ...) -> (parts, B / parts, ...): part i has the examples i, i + parts, i + 2 parts, ..."""
    # Every parts-th example: each device has its share of each part, and nothing moves between them.
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), drawn)


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jax.lax.select(condition, a, b), new, old)


def _copy(params: Modules) -> Modules:
    return jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)


def _pair(value: Any) -> jax.Array:
    return jnp.stack([jnp.asarray(value, jnp.float32), jnp.float32(1)])


def _norms(name: str, modules: Modules) -> Metrics:
    """The norm of the whole, and of its groups: layers of one name, whatever their number.

    The names of groups begin with the module's where there are several modules.
    """
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(modules):
        layer = [re.sub(r"_\d+$", "", str(entry.key)) for entry in path[1:2]]
        group = "/".join([path[0].key] * (len(modules) > 1 or not layer) + layer)
        squares[group] = squares.get(group, 0.0) + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    whole = {name: _pair(jnp.sqrt(sum(squares.values())))}
    return whole | {f"{name}/{group}": _pair(jnp.sqrt(square)) for group, square in squares.items()}
