"""Optimizers and learning-rate schedules by name, from optax."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from archirf_jax.errors import UserError, nearest
from archirf_jax.sharding import STACKED
from archirf_jax.training.muon import muon

Mask = Callable[[Any], Any]  # parameters -> a tree like them of what is chosen

SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt", "geometric")
OPTIMIZERS = ("adamw", "adam", "lion", "muon", "schedule_free_adamw")
MOMENT_DTYPES = ("float32", "bfloat16")
# Parts of a module whose matrices lead in or out of it, which Muon is not for (Jordan et al. 2024). `context` is one
# at the top alone: blocks of an MMDiT have a stream of that name. With a head of uncertainty the top is `network`.
EDGES = re.compile(
    r"((network/)?context|(.+/)?((\w+_)embedding|final_layer|input|output|out_conv|enc_\d+_conv|uncertainty|head))/.+"
)


def make_schedule(config: Any) -> optax.Schedule:
    """Linear warm-up to `optimizer.learning_rate`, then `schedule.name`; the first step already moves.

    Raises:
        UserError: unknown name, a rate that is not finite in float32, or a warm-up longer than the run.
    """
    peak, warmup, name = config.optimizer.learning_rate, config.schedule.warmup_steps, config.schedule.name
    _check("schedule.name", name, SCHEDULES)
    if not abs(peak) <= float(np.finfo(np.float32).max):
        raise UserError("optimizer.learning_rate", peak, "must be finite in float32")
    if name == "geometric":
        return geometric(config.schedule.get("start"), peak, warmup)
    if name == "inverse_sqrt":
        reference = config.schedule.reference_steps
        return lambda step: edm2_learning_rate(step + 1, peak, 1, reference, max(warmup, 1))
    left = config.steps - warmup
    if name in ("cosine", "linear") and left <= 0:
        message = f"must be below steps={config.steps} for a {name} schedule"
        raise UserError("schedule.warmup_steps", warmup, message)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, left),
        "linear": lambda: optax.linear_schedule(peak, 0.0, left),
    }
    ramp = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after[name]()], [warmup])


def geometric(low: float | None, high: float, steps: int) -> optax.Schedule:
    """From `low` at the first of `steps` updates to `high` at the last, by equal factors; `high` afterwards."""
    if low is None or not 0 < low < high:
        raise UserError("schedule.start", low, f"must be above 0 and below optimizer.learning_rate={high:g}")
    if steps < 2:
        raise UserError("schedule.warmup_steps", steps, "must be 2 or more for a geometric schedule")
    return lambda done: low * (high / low) ** (jnp.minimum(done, steps - 1) / (steps - 1))


def edm2_learning_rate(
    images_seen: Any, reference_rate: Any, batch_size: float, reference_batches: float, rampup_images: float
) -> Any:
    """Constant up to `reference_batches`, then falling with the root of time, ramped up (Karras et al. 2024, Eq. 67).

    Args:
        images_seen: so far; a number or an array.
        reference_rate: the highest rate.
        batch_size: images a batch.
        reference_batches: batches until the decay begins.
        rampup_images: images of the linear ramp from 0.
    """
    xp = jnp if isinstance(images_seen, jax.Array) else np
    decay = xp.sqrt(xp.maximum(images_seen / (reference_batches * batch_size), 1.0))
    return reference_rate / decay * xp.minimum(images_seen / rampup_images, 1.0)


def make_optimizer(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer `optimizer.name` with gradient clipping.

    It acts on dict[module, parameters]; names are matched without the module's. Weight decay touches the parameters
    that `optimizer.weight_decay_mask` names, and constants (named `frozen_...`) stay as they are, without any state.

    Raises:
        UserError: unknown name or dtype, or a mask that is not a regular expression.
    """
    optimizer = config.optimizer
    _check("optimizer.name", optimizer.name, OPTIMIZERS)
    _check("optimizer.moment_dtype", optimizer.moment_dtype, MOMENT_DTYPES)
    if optimizer.clip_norm is not None and not optimizer.clip_norm > 0:
        raise UserError("optimizer.clip_norm", optimizer.clip_norm, "must be above 0, or None (no clipping)")
    clip = [] if optimizer.clip_norm is None else [optax.clip_by_global_norm(optimizer.clip_norm)]
    return optax.chain(
        optax.masked(optax.chain(*clip, _rule(optimizer, schedule)), _trainable),
        optax.masked(optax.set_to_zero(), _constant),  # what a mask leaves out keeps its gradient
    )


def _rule(optimizer: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    b1, b2, eps, decay = optimizer.b1, optimizer.b2, optimizer.eps, optimizer.weight_decay
    moment, mask = jnp.dtype(optimizer.moment_dtype), _decay_mask(optimizer)
    rules: dict[str, Callable[[], optax.GradientTransformation]] = {
        "adamw": lambda: optax.adamw(schedule, b1, b2, eps, mu_dtype=moment, weight_decay=decay, mask=mask),
        "adam": lambda: optax.adam(schedule, b1, b2, eps, mu_dtype=moment),
        "lion": lambda: optax.lion(schedule, b1, b2, mu_dtype=moment, weight_decay=decay, mask=mask),
        "muon": lambda: _muon(optimizer, schedule, moment, mask),
        "schedule_free_adamw": lambda: _schedule_free(optimizer, schedule, mask),
    }
    if decay and optimizer.name == "adam":
        raise UserError("optimizer.weight_decay", decay, "must be 0 with adam, which decays nothing; take adamw")
    return rules[optimizer.name]()


def _muon(optimizer: Any, schedule: optax.Schedule, moment: Any, mask: Mask) -> optax.GradientTransformation:
    hidden = muon(
        schedule,
        _matrices,
        momentum=optimizer.muon_momentum,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        decay_mask=mask,
        moment_dtype=moment,
    )
    # Its own rule for the rest looks ahead as Muon does, and decays nothing.
    b1, b2, eps, decay = optimizer.b1, optimizer.b2, optimizer.eps, optimizer.weight_decay
    rest = optax.adamw(schedule, b1, b2, eps, mu_dtype=moment, weight_decay=decay, mask=mask)
    return optax.partition({"muon": hidden, "rest": rest}, _rules)


def _rules(params: Any) -> Any:
    known = _matrices(params)
    return jax.tree.map(lambda axes, _: "rest" if axes is None else "muon", known, params, is_leaf=_no_leaf_of_params)


def _no_leaf_of_params(node: Any) -> bool:
    return node is None or isinstance(node, contrib.MuonDimensionNumbers)


def _schedule_free(optimizer: Any, schedule: optax.Schedule, mask: Mask) -> optax.GradientTransformation:
    if not optimizer.b1:
        raise UserError("optimizer.b1", optimizer.b1, "must be above 0 with schedule_free_adamw, such as 0.9")
    adamw = optax.chain(
        optax.scale_by_rms(optimizer.b2, optimizer.eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(optimizer.weight_decay, mask),
        optax.scale_by_learning_rate(schedule),
    )
    return contrib.schedule_free(adamw, schedule, b1=optimizer.b1)


def evaluation_params(opt: Any, params: Any) -> Any | None:
    """The evaluation parameters of a schedule-free optimizer in state `opt`; None for other optimizers."""
    free = [
        state
        for state in jax.tree.leaves(opt, is_leaf=lambda node: isinstance(node, contrib.ScheduleFreeState))
        if isinstance(state, contrib.ScheduleFreeState)
    ]
    if not free:
        return None
    b1, z = free[0].b1, free[0].z
    # Constants have no z.
    return jax.tree.map(lambda z, y: y if _masked(z) else (y - (1 - b1) * z) / b1, z, params, is_leaf=_masked)


def agreement(optimizer: Any, opt: Any, gradients: Any, updates: jax.Array) -> jax.Array | None:
    """<g, m> of the gradients and the mean m of those before them, as far as the optimizer keeps one; else None.

    Their noise is independent, so the mean of this is the squared length of the true gradient.

    Args:
        optimizer: the configuration's.
        opt: its state.
        gradients: like the parameters.
        updates: how many have gone into m; what is returned for 0 means nothing.
    """
    means = optax.tree.get_all_with_path(opt, "mu")
    products = []
    for path, mean in means:
        muon = any(getattr(entry, "key", None) == "muon" for entry in path)
        decay = optimizer.muon_momentum if muon else {"lion": optimizer.b2}.get(optimizer.name, optimizer.b1)
        grown = jnp.maximum(1 - jnp.asarray(decay, jnp.float32) ** updates, 1 - decay)  # m began at 0
        pairs = jax.tree.map(_product, mean, gradients, is_leaf=_masked)
        products += [product / grown for product in jax.tree.leaves(pairs)]
    return sum(products) if products else None


def _product(mean: Any, gradient: jax.Array) -> jax.Array | None:
    return None if _masked(mean) else jnp.sum(mean.astype(jnp.float32) * gradient)


def _masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _check(field: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        raise UserError(field, name, f"is not one of {', '.join(allowed)}{nearest(name, allowed)}")


def _names(path: Any) -> list[str]:
    """The names on a leaf's path, without the module's."""
    return [str(entry.key) for entry in path[1:]]


def _decay_mask(optimizer: Any) -> Mask:
    """The mask of the parameters that weight decay touches."""
    try:
        pattern = re.compile(optimizer.weight_decay_mask)
    except re.error as e:
        given = optimizer.weight_decay_mask
        raise UserError("optimizer.weight_decay_mask", given, f"is not a regular expression: {e}") from e

    # By name: under a scan over layers biases are 2-D too, so rank does not say it.
    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: bool(pattern.fullmatch("/".join(_names(path)))), params)

    return mask


def _matrices(params: Any) -> Any:
    """Which axes of each hidden matrix or convolution are its rows and columns; None for what is not one."""

    def axes(path: Any, leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        names = _names(path)
        if names[-1:] != ["kernel"] or EDGES.fullmatch("/".join(names)):
            return None
        stacked = int(any(name.startswith(STACKED) for name in names))
        return contrib.MuonDimensionNumbers(tuple(range(stacked, leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, params)


def _constant(params: Any) -> Any:
    # Constants of a network, such as random frequencies, lie among its parameters.
    return jax.tree_util.tree_map_with_path(lambda path, _: str(path[-1].key).startswith("frozen_"), params)


def _trainable(params: Any) -> Any:
    return jax.tree.map(lambda constant: not constant, _constant(params))
