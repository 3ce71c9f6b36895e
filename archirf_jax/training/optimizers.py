"""Optimizers and learning-rate schedules by name, from optax."""

from __future__ import annotations

from typing import Any

import jax
import optax

from archirf_jax.errors import UserError, nearest

SCHEDULES = ("constant", "cosine")
OPTIMIZERS = ("adamw",)


def make_schedule(config: Any) -> optax.Schedule:
    """Linear warm-up to `optimizer.learning_rate`, then `schedule.name`; the first step already moves.

    Raises:
        UserError: unknown name, or a warm-up longer than the run.
    """
    peak, warmup, name = config.optimizer.learning_rate, config.schedule.warmup_steps, config.schedule.name
    if name not in SCHEDULES:
        raise UserError(
            f"config.schedule.name: {name!r} is not one of {', '.join(SCHEDULES)}{nearest(name, SCHEDULES)}"
        )
    main = optax.constant_schedule(peak)
    if name == "cosine":
        if warmup >= config.steps:
            raise UserError(
                f"config.schedule.warmup_steps: {warmup} must be below steps={config.steps} for a cosine schedule"
            )
        main = optax.cosine_decay_schedule(peak, config.steps - warmup)
    ramp = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, main], [warmup])


def make_optimizer(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer `optimizer.name` with gradient clipping.

    Weight decay touches kernels only, and constants (named `frozen_...`) stay as they are, without any state.

    Raises:
        UserError: unknown name.
    """
    optimizer = config.optimizer
    if optimizer.name not in OPTIMIZERS:
        raise UserError(
            f"config.optimizer.name: {optimizer.name!r} is not one of {', '.join(OPTIMIZERS)}"
            + nearest(optimizer.name, OPTIMIZERS)
        )
    adamw = optax.adamw(
        schedule, optimizer.b1, optimizer.b2, optimizer.eps, weight_decay=optimizer.weight_decay, mask=_kernels
    )
    clip = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
    return optax.chain(
        optax.masked(optax.chain(*clip, adamw), _trainable),
        optax.masked(optax.set_to_zero(), _constant),  # what a mask leaves out keeps its gradient
    )


def _kernels(params: Any) -> Any:
    # By name: under a scan over layers biases are 2-D too, so rank does not tell.
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _constant(params: Any) -> Any:
    # Constants of a network, such as random frequencies, lie among its parameters.
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.startswith("frozen_"), params)


def _trainable(params: Any) -> Any:
    return jax.tree.map(lambda constant: not constant, _constant(params))
