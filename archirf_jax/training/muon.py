"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): steps of matrices are made nearly orthogonal.

With the size of AdamW's steps (Liu et al. 2025, "Muon is Scalable for LLM Training", Eq. 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

SIZE = 0.2  # root mean square of the steps at a rate of 1, about AdamW's, so that learning rates mean the same
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Newton-Schulz iterations: as steep at 0 as can be (Jordan et al. 2024)
ITERATIONS = (3, 2)  # that follow each other on one product of the rows, before rounding grows to 1e-4


def muon(
    schedule: optax.Schedule,
    axes: Callable[[Any], Any],
    *,
    momentum: float,
    eps: float,
    weight_decay: float,
    decay_mask: Callable[[Any], Any],
    moment_dtype: Any,
) -> optax.GradientTransformation:
    """Muon with Nesterov's momentum.

    Args:
        schedule: of the learning rate.
        axes: parameters -> a tree of `contrib.MuonDimensionNumbers`: which axes are rows and columns, all of which
            come last.
        momentum: decay of the mean of gradients.
        eps: added to lengths.
        weight_decay: of what the mask chooses.
        decay_mask: parameters -> a tree of them.
        moment_dtype: of the mean.
    """

    def orthogonalized(updates: Any, params: Any) -> Any:
        del params
        return jax.tree.map(lambda x, own: _step(x, len(own.reduction_axis)), updates, axes(updates))

    rule = optax.chain(
        # Without iterations it leaves the mean, divided by its length.
        contrib.scale_by_muon(ns_steps=0, beta=momentum, eps=eps, mu_dtype=moment_dtype, weight_dimension_numbers=axes),
        optax.stateless(orthogonalized),
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
    )
    # The state is nested as that of optax's own Muon, which has a rule for other parameters: either can go on with it.
    others = optax.adamw(schedule)
    return optax.partition({"muon": rule, "adam": others}, lambda params: jax.tree.map(lambda _: "muon", params))


def _step(x: jax.Array, rows: int) -> jax.Array:
    """x (..., *rows, columns) of length 1 -> as large steps, nearly orthogonal."""
    matrices = x.reshape(*x.shape[: -1 - rows], -1, x.shape[-1])
    return (SIZE * math.sqrt(max(matrices.shape[-2:])) * orthogonal(matrices)).reshape(x.shape)


def orthogonal(x: jax.Array) -> jax.Array:
    """x (..., rows, columns) whose singular values are at most 1 -> with singular values of about 1, 0.7 to 1.2.

    Five Newton-Schulz iterations X -> (a + b X X^T + c (X X^T)^2) X, most of them on X X^T alone: X is needed when they
    end, and all polynomials of X X^T commute. A wide matrix takes half the multiplications so.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.swapaxes(-2, -1)).swapaxes(-2, -1)
    for iterations in ITERATIONS:
        gram = x @ x.swapaxes(-2, -1)
        product = factor = _polynomial(gram)
        for _ in range(iterations - 1):
            gram = factor @ (gram @ factor)
            factor = _polynomial(gram)
            product = factor @ product
        x = product @ x
    return x


def _polynomial(gram: jax.Array) -> jax.Array:
    a, b, c = COEFFICIENTS
    return a * jnp.eye(gram.shape[-1], dtype=gram.dtype) + b * gram + c * (gram @ gram)
