"""Protection of the parameters from bad batches: skipped updates, stops, and the scale of float16 gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Guard
from archirf_jax.errors import UserError

NOT_FINITE, JUMP = 1, 2
REASONS = {NOT_FINITE: "loss, gradient or update was not finite", JUMP: "the loss jumped"}
SETTLED = 100  # updates before a jump differs from the fall of the beginning
MEMORY = 0.99  # of the running mean and spread of losses
# Dynamic loss scaling (Micikevicius et al. 2018, Sec. 3.2): halved where gradients overflow, doubled when it is quiet.
FIRST_SCALE = 2.0**15
LARGEST_SCALE = 2.0**24
QUIET = 1000


def init(scaled: bool) -> Guard:
    """Before the first step; `scaled` for float16."""
    # A compiled step gives each of these away, so none may be the memory of another.
    numbers = {name: jnp.zeros((), jnp.int32) for name in ("updates", "skipped", "in_a_row", "stopped", "steady")}
    scale = jnp.float32(FIRST_SCALE if scaled else 1)
    return Guard(mean=jnp.zeros(()), spread=jnp.zeros(()), scale=scale, **numbers)


def check(config: Any) -> None:
    """Raise a UserError for limits out of their range."""
    if config.patience < 1:
        raise UserError("guard.patience", config.patience, "must be 1 or more")
    if config.jump is not None and not config.jump > 0:
        raise UserError("guard.jump", config.jump, "must be above 0, such as 10, or None (never)")


def watch(
    guard: Guard, loss: jax.Array, grad_norm: jax.Array, update_norm: jax.Array, config: Any, scaled: bool
) -> tuple[Guard, jax.Array]:
    """(the guard after a step with this loss, gradient and update, whether the update may be applied).

    A stop leaves everything but `stopped` as it was before the step, so that the step can be looked at.

    Args:
        guard: before the step.
        loss: () mean of the batch.
        grad_norm: () of the whole gradient, without the scale.
        update_norm: () of what would be added to the parameters.
        config: patience and jump.
        scaled: whether float16 gradients are scaled; then an overflow is the scale's fault, as long as it can fall.
    """
    computed = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    finite = computed & jnp.isfinite(update_norm)
    scales = scaled & ~computed & (guard.scale > 1)
    in_a_row = jnp.where(finite, 0, guard.in_a_row + ~scales)
    distance = loss - guard.mean
    limit = jnp.inf if config.jump is None else config.jump * jnp.sqrt(guard.spread)
    jumped = finite & (guard.updates >= SETTLED) & (distance > limit)
    stopped = jnp.where(in_a_row >= config.patience, NOT_FINITE, jnp.where(jumped, JUMP, 0))
    fine = finite & ~jumped

    # The mean weighs the first losses alike, as a mean does, then forgets.
    memory = jnp.minimum(MEMORY, guard.updates / (guard.updates + 1))
    quiet = guard.steady + 1 >= QUIET
    scale = jnp.where(finite, jnp.where(quiet, guard.scale * 2, guard.scale), jnp.maximum(guard.scale / 2, 1))
    after = Guard(
        updates=guard.updates + fine,
        skipped=guard.skipped + ~fine,
        in_a_row=in_a_row,
        stopped=stopped,
        mean=jnp.where(fine, guard.mean + (1 - memory) * distance, guard.mean),
        spread=jnp.where(fine, memory * (guard.spread + (1 - memory) * jnp.square(distance)), guard.spread),
        scale=jnp.minimum(scale, LARGEST_SCALE) if scaled else guard.scale,
        steady=jnp.where(finite & ~quiet, guard.steady + 1, 0),
    )
    still = jax.tree.map(lambda new, old: jnp.where(stopped > 0, old, new), after, guard)
    return still.replace(stopped=stopped.astype(jnp.int32)), fine
