"""2-D convolution, the one place that chooses how it is computed.

XLA's CPU backend computes the gradients of a convolution up to a hundred times slower inside a loop, where training
runs, than outside. There the gradients are made of matrix products over shifted images instead.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from archirf_jax import sharding
from archirf_jax.models import initializers
from archirf_jax.models.linear import product

LAYOUT = ("NHWC", "HWIO", "NHWC")
Padding = tuple[int, int]  # pixels of zeros before and after, along both axes


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding | None = None) -> jax.Array:
    """x (B, H, W, C) with kernel (k, k, C, D) -> (B, H', W', D).

    Args:
        x: images.
        kernel: of any side k.
        stride: pixels between two outputs.
        padding: zeros around the image; None = k // 2 on every side, and then H' = ceil(H / stride) where k is odd.
    """
    if kernel.shape[0] == 1 and stride == 1 and not padding:
        return product(x, kernel[0, 0])
    padding = padding or (kernel.shape[0] // 2,) * 2
    how = _on_cpu if jax.default_backend() == "cpu" else _native
    return how(x, kernel, stride, padding)


class Conv(nn.Module):
    """A convolution; kernel and bias are stored as `nn.Conv` stores them.

    Attributes:
        features: channels that come out.
        size: side of the kernel.
        stride: pixels between two outputs.
        dtype: compute dtype.
        kernel_init: of the kernel.
        padding: as in `convolve`.
        use_bias: whether there is one.
    """

    features: int
    size: int = 3
    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = initializers.lecun
    padding: Padding | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, H, W, C) -> (B, H', W', features), ceil(H / stride) rows where the padding is not given."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        if not self.use_bias:
            return x
        return x + self.param("bias", initializers.zeros, (self.features,)).astype(self.dtype)


@jax.custom_jvp
def _laid_out(kernel: jax.Array) -> jax.Array:
    return kernel


# cuDNN's gradient of a kernel has its axes in another order. Turned by itself it is small; left to the updates of the
# optimizer and the averages, these do not work in place, and the state is copied.
_laid_out.defjvps(lambda slope, _, kernel: with_layout_constraint(slope, Layout((0, 1, 2, 3))))


def _native(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    if jax.default_backend() == "gpu" and not sharding.gathers():  # jax 0.10 would gather the gradient once more
        kernel = _laid_out(kernel)
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [padding] * 2, dimension_numbers=LAYOUT)


def _by_products(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    k = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    # From the first place of the kernel to the last.
    height, width = (side - k + 1 for side in padded.shape[1:3])
    shifted = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(k) for j in range(k)]
    return product(jnp.concatenate(shifted, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _on_cpu(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    return _native(x, kernel, stride, padding)


@_on_cpu.defjvp
def _on_cpu_jvp(stride: int, padding: Padding, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    # The value by this function again: its own derivative, the second, is then taken in the same way.
    value = _on_cpu(x, kernel, stride, padding)
    return value, _by_products(dx, kernel, stride, padding) + _by_products(x, dkernel, stride, padding)
