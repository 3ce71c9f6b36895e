"""MMDiT (Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", Sec. 4).

Two streams of tokens, the image's patches and a context, each with its own weights, meet in one attention over both;
norms are modulated by time and a pooled vector. As in Stable Diffusion 3.5 medium some blocks may attend a second time
within the image alone; as in AuraFlow the last blocks may run over both streams with the same weights.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition
from archirf_jax.errors import UserError
from archirf_jax.models import attention, initializers, layers
from archirf_jax.models.conditions import CONTEXTS, Context, check_null_tokens
from archirf_jax.models.dit import FinalLayer
from archirf_jax.models.linear import Dense

NORMS = ("layer", "rms")
# Width, depth and heads; Stable Diffusion 3 and 3.5 take 64 channels a head and as many heads as blocks.
_PUBLISHED: dict[str, Any] = dict(patch_size=2, context="text", context_width=4096, pooled_width=2048)
PRESETS: dict[str, dict[str, Any]] = {
    "tiny/2": dict(hidden_size=96, depth=3, depth_single=2, num_heads=4, patch_size=2),
    "S/2": dict(hidden_size=384, depth=6, depth_single=4, num_heads=6, patch_size=2),
    "sd3-medium": _PUBLISHED | dict(hidden_size=1536, depth=24, num_heads=24, position_size=192),
    "sd3.5-medium": _PUBLISHED
    | dict(hidden_size=1536, depth=24, num_heads=24, position_size=384, qk_norm="rms", dual_layers=tuple(range(13))),
    "sd3.5-large": _PUBLISHED | dict(hidden_size=2432, depth=38, num_heads=38, position_size=192, qk_norm="rms"),
}


class Stream(nn.Module):
    """What one stream of tokens has of its own in a block: modulation, projections, perceptron.

    Attributes:
        width: of the tokens.
        dual: attend a second time within the stream (Stable Diffusion 3.5 medium).
        ends: the stream is only attended to and goes no further.
        The others as in `MMDiT`.
    """

    width: int
    num_heads: int
    mlp_ratio: float = 4.0
    mlp: str = "gelu"
    qk_norm: str | None = None
    norm: str = "layer"
    scale_only: bool = False
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    dual: bool = False
    ends: bool = False

    def setup(self) -> None:
        """Linear layers; those after the attention only where the stream goes on."""
        each = [] if self.scale_only else ["shift"]
        self.vectors = len(each + ["scale"]) if self.ends else len(each + ["scale", "gate"]) * (3 if self.dual else 2)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        self.modulation = dense(self.vectors * self.width, kernel_init=initializers.zeros)
        self.project = attention.Projection(self.num_heads, self.qk_norm, self.use_bias, self.dtype)
        if not self.ends:
            self.out = dense(self.width, kernel_init=initializers.xavier)
            self.perceptron = layers.Mlp(int(self.width * self.mlp_ratio), self.dtype, self.mlp)
        if self.dual:
            self.second = attention.SelfAttention(self.num_heads, self.dtype, self.qk_norm, self.use_bias)

    def before(self, x: jax.Array, c: jax.Array) -> tuple[tuple[jax.Array, ...], list[jax.Array]]:
        """Queries, keys and values of tokens x (B, N, D) under condition c (B, D), and the vectors `after` needs."""
        vectors = jnp.split(self.modulation(nn.silu(c)), self.vectors, axis=-1)
        return self.project(self._modulated(x, vectors)), vectors

    def after(self, x: jax.Array, attended: jax.Array, vectors: list[jax.Array]) -> jax.Array:
        """Tokens x (B, N, D) after what attention gave them and the perceptron."""
        each = len(vectors) // (3 if self.dual else 2)
        first, then, *second = (vectors[i : i + each] for i in range(0, len(vectors), each))
        y = x + first[-1][:, None] * self.out(attended)
        for extra in second:
            y = y + extra[-1][:, None] * self.second(self._modulated(x, extra))
        return y + then[-1][:, None] * self.perceptron(self._modulated(y, then))

    def _modulated(self, x: jax.Array, vectors: list[jax.Array]) -> jax.Array:
        normalized = layers.layer_normalized if self.norm == "layer" else attention.rms_normalized
        shift, scale = (None, vectors[0]) if self.scale_only else vectors[:2]
        return layers.modulated(x, shift, scale, self.dtype, normalized)


class JointBlock(nn.Module):
    """One attention over both streams, each with its own weights."""

    stream: functools.partial[Stream]
    dual: bool = False
    ends: bool = False

    def setup(self) -> None:
        """The two streams."""
        self.context, self.image = self.stream(ends=self.ends), self.stream(dual=self.dual)

    def __call__(
        self, tokens: tuple[jax.Array, jax.Array], c: jax.Array, lengths: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens of context (B, L, D) and image (B, N, D), of condition c (B, D) -> both.

        Of the context the first `lengths` (B,) tokens count; None = all.
        """
        context, image = tokens
        of_context, context_vectors = self.context.before(context, c)
        of_image, image_vectors = self.image.before(image, c)
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(of_context, of_image, strict=True))
        attention.sow_logit(self, q, k)
        h = _attend(q, k, v, context.shape[1], lengths)
        if not self.ends:
            context = self.context.after(context, h[:, : context.shape[1]], context_vectors)
        return context, self.image.after(image, h[:, context.shape[1] :], image_vectors)


class SingleBlock(nn.Module):
    """Both streams as one, with the same weights (Fal's AuraFlow)."""

    stream: functools.partial[Stream]
    context: int  # how many tokens, L, are the context's

    def setup(self) -> None:
        """The one stream."""
        self.tokens = self.stream()

    def __call__(self, x: jax.Array, c: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """Tokens x (B, L + N, D), condition c (B, D), how many tokens of the context count (B,) -> like x."""
        of_tokens, vectors = self.tokens.before(x, c)
        q, k, v = of_tokens
        attention.sow_logit(self, q, k)
        return self.tokens.after(x, _attend(q, k, v, self.context, lengths), vectors)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, context: int, lengths: jax.Array | None) -> jax.Array:
    """Attention of heads (B, L + N, heads, width), L = context, of which `lengths` (B,) count -> (B, L + N, D)."""
    if lengths is not None:
        # Key lengths leave out the last keys, so the context's come after the image's.
        k, v = (jnp.roll(a, -context, axis=1) for a in (k, v))
        lengths = k.shape[1] - context + lengths
    return attention.attend(q, k, v, key_lengths=lengths).reshape(*q.shape[:2], -1)


class MMDiT(nn.Module, layers.Presets):
    """Multi-modal diffusion transformer.

    Attributes:
        num_classes: labels are 0..num_classes-1, the null label is num_classes; texts need none.
        context: what the context stream holds, a key of `conditions.CONTEXTS`; its other fields are there.
        class_tokens, class_width, class_embeddings, context_width, pooled_width, null_tokens: see `conditions.Context`.
        patch_size: side of a square patch in pixels; both image sides must be multiples of it.
        hidden_size: token width, a multiple of num_heads and of 4.
        depth: blocks of two streams.
        depth_single: blocks after them with one stream of all tokens; without any, the context ends in the last of
            the others.
        num_heads: attention heads per block.
        dual_layers: numbers of two-stream blocks that attend twice within the image.
        mlp_ratio: width of the perceptrons' hidden layers over hidden_size.
        mlp: "gelu" or "swiglu".
        qk_norm: norm of the queries and keys of each head: None, "rms" or "layer".
        norm: of the streams: "layer" or "rms".
        scale_only: modulate without shifts.
        use_bias: of the projections to queries, keys and values.
        registers: learned tokens before the context's.
        position_size: side of the table of positions in patches, whose middle an image takes; None = none is kept and
            positions count from the top left corner.
        out_channels: None = as many as the image has, or twice as many with learn_sigma.
        learn_sigma: the second half of the output is the variance's.
        remat: keep no activations of blocks for the backward pass.
        scan: compile one block for all equal ones in a row; their parameters are stacked.
        dtype: compute dtype; norms, softmax and the final layer stay float32.
    """

    num_classes: int | None = None
    context: str = "class_tokens"
    class_tokens: int = 2
    class_width: int | None = None
    class_embeddings: str | None = None
    context_width: int | None = None
    pooled_width: int | None = None
    null_tokens: int = 0
    patch_size: int = 2
    hidden_size: int = 384
    depth: int = 6
    depth_single: int = 0
    num_heads: int = 6
    dual_layers: tuple[int, ...] = ()
    mlp_ratio: float = 4.0
    mlp: str = "gelu"
    qk_norm: str | None = None
    norm: str = "layer"
    scale_only: bool = False
    use_bias: bool = True
    registers: int = 0
    position_size: int | None = None
    out_channels: int | None = None
    learn_sigma: bool = False
    remat: bool = False
    scan: bool = False
    dtype: jnp.dtype = jnp.float32

    presets = PRESETS

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        """Noisy images x (B, H, W, C) at network times t (B,) -> (B, H, W, C') float32.

        The condition holds "label" (B,), or for texts "tokens" (B, L, context_width), "pooled" (B, pooled_width) and
        maybe "mask" (B, L).

        Raises:
            UserError: a size that does not divide as the attributes above say, an unknown name, a missing condition.
        """
        self._check(*x.shape[1:3])
        p, d = self.patch_size, self.hidden_size
        rows, columns = x.shape[1] // p, x.shape[2] // p
        channels = self.out_channels or x.shape[3] * (2 if self.learn_sigma else 1)

        x = Dense(d, dtype=self.dtype, kernel_init=initializers.xavier, name="patch_embedding")(layers.to_patches(x, p))
        x = x + self._positions(rows, columns).astype(x.dtype)  # (B, N, D)
        c = layers.TimestepEmbedder(d, self.dtype, name="time_embedding")(t)
        context, lengths, pooled = self.conditions(name="context")(condition)  # (B, L, D), (B,), (B, D)
        c = c + pooled
        if self.registers:
            registers = self.param("registers", initializers.small_normal, (self.registers, d)).astype(self.dtype)
            context = jnp.concatenate([jnp.broadcast_to(registers, (len(x), *registers.shape)), context], axis=1)
            lengths = None if lengths is None else lengths + self.registers

        context, x = self._joint_blocks((context, x), c, lengths)
        if self.depth_single:
            single = functools.partial(SingleBlock, self._stream(), context.shape[1])
            tokens = jnp.concatenate([context, x], axis=1)
            x = self._repeat(single, self.depth_single, tokens, c, lengths, self.depth)[:, context.shape[1] :]
        x = FinalLayer(p * p * channels, name="final_layer")(x, c)  # (B, N, p*p*C')
        return layers.from_patches(x, p, rows)

    @nn.nowrap
    def sizes(self, trained: tuple[int, int]) -> tuple[int, int | None]:
        """What sides of images are multiples of, and the largest side after training at `trained`; None = any.

        Images take the middle of the table of positions (Esser et al. 2024), or without one count from the corner.
        """
        return self.patch_size, self.patch_size * self.position_size if self.position_size else max(trained)

    @nn.nowrap
    def conditions(self, name: str | None = None) -> Context:
        """What turns labels or texts into tokens and a pooled vector."""
        return Context(
            self.context,
            self.num_classes,
            self.hidden_size,
            class_tokens=self.class_tokens,
            class_width=self.class_width,
            class_embeddings=self.class_embeddings,
            context_width=self.context_width,
            pooled_width=self.pooled_width,
            null_tokens=self.null_tokens,
            dtype=self.dtype,
            name=name,
        )

    def _joint_blocks(
        self, tokens: tuple[jax.Array, jax.Array], c: jax.Array, lengths: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        last = self.depth - 1 if not self.depth_single else self.depth  # where the context ends
        first = 0
        for (dual, ends), run in itertools.groupby((i in self.dual_layers, i == last) for i in range(self.depth)):
            count = len(list(run))
            block = functools.partial(JointBlock, self._stream(), dual=dual, ends=ends)
            tokens = self._repeat(block, count, tokens, c, lengths, first)
            first += count
        return tokens

    def _repeat(
        self, block: functools.partial, depth: int, x: Any, c: jax.Array, lengths: jax.Array | None, first: int
    ) -> Any:
        return layers.repeat(block, depth, x, c, lengths, remat=self.remat, scan=self.scan, first=first)

    def _stream(self) -> functools.partial[Stream]:
        return functools.partial(
            Stream,
            self.hidden_size,
            self.num_heads,
            self.mlp_ratio,
            self.mlp,
            self.qk_norm,
            self.norm,
            self.scale_only,
            self.use_bias,
            self.dtype,
        )

    def _positions(self, rows: int, columns: int) -> jax.Array:
        if not self.position_size:
            return layers.sincos_positions_2d(rows, columns, self.hidden_size)
        side, width = self.position_size, self.hidden_size
        table = self.param("frozen_positions", lambda key: layers.sincos_positions_2d(side, side, width))
        return layers.centre_crop(jax.lax.stop_gradient(table), rows, columns)

    def _check(self, height: int, width: int) -> None:
        layers.require(self, lambda value: value > 0, "must be above 0", "hidden_size", "mlp_ratio", "depth")
        layers.require(self, lambda value: value > 0, "must be above 0", "position_size", "out_channels")
        layers.require(self, lambda value: value >= 0, "must be 0 or more", "depth_single", "registers", "null_tokens")
        check_null_tokens(self.null_tokens, self.context == "text", "model.context")
        layers.check_most(self, "hidden_size", "depth", "depth_single")
        layers.check_choices(self, context=CONTEXTS, mlp=layers.MLPS, qk_norm=attention.QK_NORMS, norm=NORMS)
        layers.check_mlp(self.hidden_size, self.mlp_ratio)
        layers.check_patches(height, width, self.patch_size)
        attention.check_heads(self.hidden_size, self.num_heads)
        layers.require(self, lambda value: value % 4 == 0, "must be a multiple of 4", "hidden_size")
        if self.dual_layers and (self.scale_only or not set(self.dual_layers) <= set(range(self.depth))):
            raise UserError(
                "model.dual_layers",
                self.dual_layers,
                f"must be numbers of blocks, 0 to {self.depth - 1}, and scale_only be off",
            )


build = MMDiT
