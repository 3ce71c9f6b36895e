"""Layers that more than one network uses: embeddings of time and positions, patches, perceptrons, repeated blocks.

Images are NHWC, token sequences are (batch, tokens, width). Parameters are float32; `dtype` is the compute dtype.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from archirf_jax import sharding
from archirf_jax.errors import UserError, nearest
from archirf_jax.models import initializers
from archirf_jax.models.linear import Dense

WIDEST, DEEPEST = 65_536, 1000  # channels, and blocks

# The two collections of what networks sow besides their answer.
EXTRAS = "extras"  # arrays (B, ...): heads such as "log_variance", features
DIAGNOSTICS = "diagnostics"  # scalars such as "attention_logit", of which the largest of all layers is reported
STORED = "stored"  # the name of what `modulated` keeps for its gradient
MLPS = ("gelu", "swiglu")


def sinusoidal_embedding(t: jax.Array, width: int = 256, max_period: float = 10_000.0) -> jax.Array:
    """Cosines and sines of t at geometrically spaced frequencies (Vaswani et al. 2017, Sec. 3.5).

    Args:
        t: (B,) network times, usually 0..1000.
        width: even number of channels.
        max_period: the longest wavelength over 2 pi.

    Returns:
        (B, width) float32: all cosines, then all sines.
    """
    half = width // 2
    frequencies = np.exp(-np.log(max_period) * np.arange(half) / half).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies  # (B, half)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_positions_2d(height: int, width: int, channels: int) -> jax.Array:
    """Fixed 2-D sine-cosine position table (He et al. 2021, MAE, appendix A.1).

    The first half of the channels encodes the column, the second half the row, each as all sines, then all cosines.

    Args:
        height: tokens per column of the grid.
        width: tokens per row of the grid.
        channels: a multiple of 4.

    Returns:
        (height * width, channels) float32, tokens in row-major order.
    """
    frequencies = 1 / 10_000.0 ** (np.arange(channels // 4) / (channels / 4))

    def axis_table(length: int) -> np.ndarray:
        angles = np.arange(length)[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    # Only the axes are constants of a program, which would be as large as the table otherwise.
    shape = (height, width, channels // 2)
    columns = jnp.broadcast_to(axis_table(width), shape)
    rows = jnp.broadcast_to(axis_table(height)[:, None], shape)
    return jnp.concatenate([columns, rows], axis=-1).reshape(height * width, channels)


def to_patches(x: jax.Array, size: int) -> jax.Array:
    """Images (B, H, W, C) -> (B, H W / size^2, size size C), patches and their pixels in row-major order."""
    return rearrange(x, "b (r p) (s q) c -> b (r s) (p q c)", p=size, q=size)


def from_patches(x: jax.Array, size: int, rows: int) -> jax.Array:
    """The inverse of `to_patches` for images of `rows` rows of patches."""
    return rearrange(x, "b (r s) (p q c) -> b (r p) (s q) c", r=rows, p=size, q=size)


def centre_crop(table: jax.Array, rows: int, columns: int) -> jax.Array:
    """The middle rows x columns of a square table of positions (N, D) -> (rows * columns, D) (Esser et al. 2024).

    Raises:
        UserError: the table is smaller.
    """
    side = round(table.shape[0] ** 0.5)
    if rows > side or columns > side:
        raise UserError(
            "model.position_size",
            side,
            f"is the side of a table of positions, and an image of {rows}x{columns} patches is larger; take smaller "
            "images, or train with a larger table",
        )
    top, left = (side - rows) // 2, (side - columns) // 2
    square = table.reshape(side, side, -1)[top : top + rows, left : left + columns]
    return square.reshape(rows * columns, -1)


def check_patches(height: int, width: int, size: int) -> None:
    """Raise a UserError unless patches of this size fill the image."""
    if size < 1 or height % size or width % size:
        raise UserError(
            "model.patch_size",
            size,
            f"does not divide the image size {height}x{width}; choose a patch size that divides both sides",
        )


def check_mlp(width: int, ratio: float) -> None:
    """Raise a UserError unless a perceptron `ratio` times as wide as the tokens has a hidden unit."""
    if int(width * ratio) < 1:
        raise UserError("model.mlp_ratio", ratio, f"leaves no hidden unit at width {width}; choose a larger one")


def modulate(x: jax.Array, shift: jax.Array | None, scale: jax.Array) -> jax.Array:
    """x (B, N, D) times 1 + scale, plus shift, both (B, D): adaptive norm (Peebles & Xie 2022, Sec. 3.2)."""
    scaled = x * (1 + scale[:, None])
    return scaled if shift is None else scaled + shift[:, None]


def layer_normalized(x: jax.Array) -> jax.Array:
    """x (..., D) with mean 0 and variance 1 along the last axis, float32."""
    x = x.astype(jnp.float32)
    x = x - stored(jnp.mean(x, axis=-1, keepdims=True))
    return x * stored(jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6))


# With blocks in a loop all that gradients need is stacked: two float32 arrays like x, were it not for the policy.
@functools.partial(
    jax.checkpoint,
    static_argnums=(3, 4),
    prevent_cse=False,
    policy=jax.checkpoint_policies.save_only_these_names(STORED),
)
def modulated(
    x: jax.Array,
    shift: jax.Array | None,
    scale: jax.Array,
    dtype: jnp.dtype,
    normalized: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Tokens x (B, N, D) normalized, then `modulate`d by shift and scale (B, D), in that dtype."""
    return modulate(normalized(x), shift, scale).astype(dtype)


def stored(x: jax.Array) -> jax.Array:
    """x, which gradients read from memory and do not compute again.

    For statistics of rows: where XLA computes them again in a gradient, it writes intermediate results in float32.
    """
    return checkpoint_name(_apart(x), STORED)


@jax.custom_jvp
def _apart(x: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(x)


_apart.defjvps(lambda slope, _, x: slope)


def check_choices(model: nn.Module, **allowed: Collection[str | None]) -> None:
    """Raise a UserError if a field of a network is not among the names allowed for it."""
    for field, names in allowed.items():
        value = getattr(model, field)
        if value not in names:
            message = f"is not one of {', '.join(map(repr, names))}{nearest(str(value), filter(None, names))}"
            raise UserError(f"model.{field}", value, message)


def require(model: Any, holds: Callable[[Any], Any], rule: str, *fields: str) -> None:
    """Raise a UserError if a value of these fields breaks a rule, such as "must be above 0"; None breaks none."""
    for field in fields:
        value = getattr(model, field)
        if value is not None and not holds(value):
            raise UserError(f"model.{field}", value, rule)


def check_most(model: Any, width: str, *blocks: str) -> None:
    """Raise a UserError for a width, or a number of blocks, that no machine could hold or compile."""
    require(model, lambda value: value <= WIDEST, f"must be at most {WIDEST}", width)
    require(model, lambda value: value <= DEEPEST, f"must be at most {DEEPEST}", *blocks)


def entry(condition: Mapping[str, jax.Array], name: str) -> jax.Array:
    """The condition of this name.

    Raises:
        UserError: it is missing.
    """
    if name not in condition:
        raise UserError("condition", sorted(condition), f"lacks {name!r}, which this network reads; add a conditioner")
    return condition[name]


def check_entry(field: str, width: int | None, value: jax.Array) -> None:
    """Raise a UserError about the network's `field` unless a condition is (B, width)."""
    if value.ndim != 2 or value.shape[-1] != width:
        message = f"does not fit the condition, whose shape is {value.shape}; it must be (B, {width})"
        raise UserError(f"model.{field}", width, message)


def resized(x: jax.Array, height: int, width: int) -> jax.Array:
    """Images (B, h, w, C) -> (B, height, width, C): bilinear between pixel centres, constant beyond the outermost."""
    return jax.image.resize(x, (len(x), height, width, x.shape[-1]), "linear", antialias=False)


def takes_second_time(module: nn.Module) -> bool:
    """Whether a network is called with the time that its answer leads to, `s`."""
    return "s" in inspect.signature(type(module).__call__).parameters


class Presets:
    """A network with named sizes."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def preset(cls, name: str, **fields: Any) -> Self:
        """The network of a named size, with other fields as given.

        Raises:
            UserError: there is no such size.
        """
        if name not in cls.presets:
            raise UserError("preset", name, f"is not one of {', '.join(cls.presets)}{nearest(name, cls.presets)}")
        return cls(**{**cls.presets[name], **fields})


def repeat(
    block: Callable[..., nn.Module],
    depth: int,
    x: Any,
    *fixed: Any,
    remat: bool = False,
    scan: bool = False,
    first: int = 0,
) -> Any:
    """x through `depth` equal blocks, block_0, block_1, ...; only inside a compact module.

    Args:
        block: makes one, given its name; its call is (x, *fixed) -> x.
        depth: how many.
        x: what goes through, a pytree.
        fixed: further arguments, the same for every block.
        remat: compute activations again in the backward pass instead of keeping them.
        scan: compile one block for all; parameters then lie in blocks_0 with a leading axis of `depth`.
        first: the number of the first block.
    """

    def call(block: nn.Module, x: Any, *fixed: Any) -> Any:
        return block(x, *fixed)

    if sharding.gathers():
        call = nn.map_variables(call, "params", sharding.gathered)  # one block at a time, and again under remat
    call = nn.remat(call, prevent_cse=not scan) if remat else call
    if not scan:
        once = nn.jit(call)  # traced once for all
        for i in range(depth):
            one = block(name=f"block_{first + i}")
            x = (call if one.is_initializing() else once)(one, x, *fixed)  # under jit other parameters are drawn
        return x
    loop = nn.scan(
        lambda block, x, _: (call(block, x, *fixed), None),
        variable_axes={"params": 0, DIAGNOSTICS: 0, EXTRAS: 1},  # extras keep their batch in front
        split_rngs={"params": True, "dropout": True},
        length=depth,
    )
    return loop(block(name=f"blocks_{first}"), x, None)[0] if depth else x


class VectorEmbedder(nn.Module):
    """(B, D) -> (B, width): a two-layer SiLU perceptron."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, D) -> (B, width)."""
        h = nn.Dense(self.width, dtype=self.dtype, kernel_init=initializers.small_normal, name="hidden")(x)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=initializers.small_normal, name="out")(nn.silu(h))


class TimestepEmbedder(VectorEmbedder):
    """Network time (B,) -> (B, width): sinusoids, then the perceptron."""

    def __call__(self, t: jax.Array) -> jax.Array:
        """t (B,) -> (B, width)."""
        return super().__call__(sinusoidal_embedding(t))


@jax.custom_jvp
def gelu(h: jax.Array) -> jax.Array:
    """The tanh-approximated GELU (Hendrycks & Gimpel 2016, Sec. 2)."""
    return nn.gelu(h, approximate=True)


@gelu.defjvp
def _slope_of_gelu(primals: tuple[jax.Array], slopes: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (h,) = primals
    # One array, and of h alone: XLA would write the tanh for it, which is as large.
    apart = jax.lax.optimization_barrier(h).astype(jnp.float32)
    derivative = jax.jvp(functools.partial(nn.gelu, approximate=True), (apart,), (jnp.ones_like(apart),))[1]
    return gelu(h), slopes[0] * derivative.astype(h.dtype)


class Mlp(nn.Module):
    """Perceptron over the last axis of (B, N, D).

    Attributes:
        hidden: width of the hidden layer.
        dtype: compute dtype.
        kind: "gelu" (tanh-approximated), or "swiglu" (Shazeer 2020): gated and without biases, its hidden layer two
            thirds as wide, rounded up to a multiple of 256, so that it has as many parameters.
    """

    hidden: int
    dtype: jnp.dtype = jnp.float32
    kind: str = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens x (B, N, D) -> (B, N, D)."""
        gated = self.kind == "swiglu"
        hidden = -(-max(2 * self.hidden // 3, 1) // 256) * 256 if gated else self.hidden

        def dense(width: int, name: str) -> nn.Dense:
            return Dense(width, use_bias=not gated, dtype=self.dtype, kernel_init=initializers.xavier, name=name)

        h = dense(hidden, "hidden")(x)
        h = nn.silu(h) * dense(hidden, "gate")(x) if gated else gelu(h)
        return dense(x.shape[-1], "out")(h)
