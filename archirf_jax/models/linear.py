"""Linear layers along the last axis, as products of two matrices.

XLA's CPU backend multiplies matrices without copying them; where an operand has more axes, the gradient of the kernel
transposes it first, which takes a fifth of a DiT's training step.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (..., D) times kernel (D, E) -> (..., E)."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Dense):
    """`nn.Dense`, for anything with more axes than a matrix."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., D) -> (..., features)."""
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


class Split(nn.Dense):
    """`Dense` whose features come as arrays of equal width."""

    @nn.compact
    def __call__(self, x: jax.Array, parts: int) -> list[jax.Array]:
        """x (..., D) -> `parts` arrays (..., features / parts)."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if jax.default_backend() != "gpu":
            out = product(x, kernel)
            return jnp.split(out if bias is None else out + bias, parts, axis=-1)
        found = [product(x, each) for each in jnp.split(kernel, parts, axis=-1)]
        if bias is not None:
            found = [each + more for each, more in zip(found, jnp.split(bias, parts), strict=True)]
        return found
