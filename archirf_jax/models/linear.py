"""Linear layers along the last axis, as products of two matrices.

XLA's CPU backend multiplies matrices without copying them; where an operand has more axes, the gradient of the kernel
transposes it first, which takes a fifth of a DiT's training step.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.models import initializers


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (..., D) times kernel (D, E) -> (..., E)."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Dense):
    """`nn.Dense`, for anything with more axes than a matrix."""

    kernel_init: nn.initializers.Initializer = initializers.lecun
    bias_init: nn.initializers.Initializer = initializers.zeros

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., D) -> (..., features)."""
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


class Split(nn.Module):
    """`Dense` whose features come as arrays of equal width.

    Attributes:
        features: of all parts.
        parts: how many arrays.
        heads: the features of each head lie together, and fall apart into parts; 1 = all parts are whole.
        use_bias, dtype, kernel_init: as in `nn.Dense`.
    """

    features: int
    parts: int
    heads: int = 1
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = initializers.lecun

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """x (..., D) -> `parts` arrays (..., features / parts), heads one after the other."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", initializers.zeros, (self.features,)) if self.use_bias else jnp.zeros(self.features)
        x, kernel, bias = (each.astype(self.dtype) for each in (x, kernel, bias))
        if jax.default_backend() != "gpu":
            return self._apart(product(x, kernel) + bias)
        # cuDNN's attention takes whole arrays: parts of one product would be copied.
        return [product(x, one) + b for one, b in zip(self._apart(kernel), self._apart(bias), strict=True)]

    def _apart(self, features: jax.Array) -> list[jax.Array]:
        """(..., features) -> parts of the last axis."""
        *leading, width = features.shape
        heads = features.reshape(*leading, self.heads, self.parts, width // self.parts // self.heads)
        return [part.reshape(*leading, width // self.parts) for part in jnp.split(heads, self.parts, axis=-2)]
