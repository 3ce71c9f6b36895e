"""Arithmetic of a function, counted in its traced program: nothing is computed or compiled, and loops count in full.

A multiply-add is 2 operations. Papers on image models often call multiply-adds "flops": half of what is counted here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

# Products of a pair of tokens: two on the way there; cuDNN makes one of them again on the way back, and four others.
FUSED_ATTENTION = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


def count(fn: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of the matrix products and convolutions of fn(*args).

    Elementwise operations (norms, softmax, activations) are left out, as is usual for shares of a device's peak: they
    are a few thousandths of a transformer. Products with the zeros around an image or between the pixels of a stretched
    one are not counted, and neither is what no result depends on. The body of a scan counts as often as it runs, a cond
    counts as its costliest branch, and the body of a while loop counts once, because its trip count is unknown. What is
    computed again counts again.

    Args:
        fn: any function that jax can trace.
        args: its arguments: arrays or ShapeDtypeStructs.
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    return _of_jaxpr(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _of_jaxpr(jaxpr: Any) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name in FUSED_ATTENTION:
        return _of_attention(equation)
    inside = [_of_jaxpr(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inside)
    times = params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1
    return times * sum(inside)


def _jaxprs(value: Any) -> Iterator[Any]:
    """The programs in a parameter of an equation: one, several, or none."""
    for each in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(each, "jaxpr", each)
        if hasattr(inner, "eqns"):
            yield inner


def _of_product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _of_convolution(equation: Any) -> float:
    params, (x, kernel), out = equation.params, (v.aval.shape for v in equation.invars), equation.outvars[0].aval.shape
    numbers = params["dimension_numbers"]
    total = 2.0 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    for i, (stride, padding, stretch, spread) in enumerate(
        zip(params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"], strict=True)
    ):
        starts = np.arange(out[numbers.out_spec[2 + i]]) * stride - padding[0]
        read = starts[:, None] + np.arange(kernel[numbers.rhs_spec[2 + i]]) * spread  # pixels, and zeros around them
        inside = (read >= 0) & (read <= (x[numbers.lhs_spec[2 + i]] - 1) * stretch) & (read % stretch == 0)
        total *= int(inside.sum())
    return total


def _of_attention(equation: Any) -> float:
    """The operations of a call of cuDNN: queries (B, N, heads, width), keys (B, M, heads, width)."""
    (batch, n, heads, width), m = equation.invars[0].aval.shape, equation.invars[1].aval.shape[1]
    return 2.0 * FUSED_ATTENTION[equation.primitive.name] * batch * n * m * heads * width
