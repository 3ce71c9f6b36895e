"""DiT (Peebles & Xie 2022, "Scalable Diffusion Models with Transformers", Sec. 3.2, Fig. 3) in its four designs.

An image becomes patches, patches become tokens, a transformer conditioned on time and label runs over them, and a
linear layer turns each token back into a patch. The designs differ in how time and label condition it:

    adaln_zero       norms shifted and scaled by them, every branch behind a gate that starts at zero
    adaln            the same without gates
    cross_attention  time and label are a sequence of two, which every block attends to; a text may follow them
    in_context       time and label are two tokens more, and so are those of a text

The final layer starts at zero: the network's output is exactly 0 at initialisation. With adaln_zero every block is the
identity then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition
from archirf_jax.errors import UserError
from archirf_jax.models import attention, initializers, layers
from archirf_jax.models.conditions import check_null_tokens, pack, pooled_text, with_null
from archirf_jax.models.linear import Dense

# Peebles & Xie 2022, Table 1: width, depth and heads; "tiny" is this project's own, for 8x8 digits on a CPU.
SIZES = {
    "tiny": dict(hidden_size=96, depth=4, num_heads=4),
    "S": dict(hidden_size=384, depth=12, num_heads=6),
    "B": dict(hidden_size=768, depth=12, num_heads=12),
    "L": dict(hidden_size=1024, depth=24, num_heads=16),
    "XL": dict(hidden_size=1152, depth=28, num_heads=16),
}
PRESETS = {f"{size}/{patch}": SIZES[size] | dict(patch_size=patch) for size in SIZES for patch in (2, 4, 8)}
MODULATIONS = {"adaln_zero": 3, "adaln": 2, "cross_attention": 0, "in_context": 0}  # vectors a branch takes
READING = ("cross_attention", "in_context")  # the designs that read the tokens of a text
POSITIONS = ("sincos", "learned", "rotary")
NOISE_SCALE = 1000.0  # a process time of 1 is embedded as a network time of this
Branch = Callable[[jax.Array], jax.Array]


class DiTBlock(nn.Module):
    """Attention and MLP, each on its own sum with its input; attributes as in `DiT`."""

    num_heads: int
    conditioning: str = "adaln_zero"
    mlp_ratio: float = 4.0
    mlp: str = "gelu"
    qk_norm: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, c: jax.Array, angles: jax.Array | None = None, lengths: jax.Array | None = None
    ) -> jax.Array:
        """Tokens x (B, N, D) -> (B, N, D).

        c is (B, D), or (B, M, D) to attend to; of these, or in context of x, the first `lengths` (B,) count. Angles are
        rotary positions.
        """
        width = x.shape[-1]
        attend = attention.SelfAttention(self.num_heads, self.dtype, self.qk_norm, name="attention")
        own = lengths if self.conditioning == "in_context" else None
        branches: dict[str, Branch] = {"attention": lambda h: attend(h, angles, own)}
        if self.conditioning == "cross_attention":
            cross = attention.CrossAttention(self.num_heads, self.dtype, self.qk_norm, name="cross_attention")
            branches["cross_attention"] = lambda h: cross(h, c, lengths)
        branches["mlp"] = layers.Mlp(int(width * self.mlp_ratio), self.dtype, self.mlp, name="mlp")

        vectors = MODULATIONS[self.conditioning]
        if not vectors:
            for name, branch in branches.items():
                norm = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=f"{name}_norm")
                x = x + branch(norm(x).astype(self.dtype))
            return x
        dense = nn.Dense(2 * vectors * width, dtype=self.dtype, kernel_init=initializers.zeros, name="modulation")
        for branch, modulation in zip(branches.values(), jnp.split(dense(nn.silu(c)), 2, axis=-1), strict=True):
            shift, scale, *gate = jnp.split(modulation, vectors, axis=-1)
            h = branch(layers.modulated(x, shift, scale, self.dtype, layers.layer_normalized))
            x = x + (gate[0][:, None] * h if gate else h)
        return x


class FinalLayer(nn.Module):
    """Norm, adaptive where there is a condition, and a zero-initialised linear map to patches; in float32."""

    out_features: int

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array | None) -> jax.Array:
        """Tokens x (B, N, D), condition c (B, D) or none -> (B, N, out_features)."""
        linear = Dense(self.out_features, kernel_init=initializers.zeros, name="linear")
        if c is None:
            return linear(nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm")(x))
        modulation = nn.Dense(2 * x.shape[-1], kernel_init=initializers.zeros, name="modulation")(nn.silu(c))
        shift, scale = jnp.split(modulation, 2, axis=-1)
        return linear(layers.modulated(x, shift, scale, jnp.float32, layers.layer_normalized))


class DiT(nn.Module, layers.Presets):
    """Diffusion transformer for images with labels or texts.

    Attributes:
        num_classes: labels are 0..num_classes-1, the null label is num_classes; None = no labels are read.
        patch_size: side of a square patch in pixels; both image sides must be multiples of it.
        hidden_size: token width, a multiple of num_heads and of 4.
        depth: number of blocks.
        num_heads: attention heads per block.
        conditioning: how blocks are conditioned on time and label: a key of MODULATIONS.
        mlp_ratio: width of the MLP's hidden layer over hidden_size.
        mlp: "gelu" or "swiglu".
        learn_sigma: give 2C output channels instead of C; the second half is the variance's.
        spare_channels: compute 2C output channels and give the first C, as SiT does.
        registers: learned tokens before the image's, whose outputs are dropped (Darcet et al. 2023).
        qk_norm: norm of the queries and keys of each head, learned a channel: None, "rms" or "layer".
        positions: "sincos" (fixed), "learned" (a table) or "rotary" (2-D axial).
        position_size: side of the learned table in patches; smaller images take its middle.
        null_label: whether there is an embedding for the null label.
        two_times: condition also on the time s that the answer leads to, as t - s.
        context_width: width of text tokens, which every block attends to; only with conditioning "cross_attention" and
            "in_context". A label is then read if it is there. None = no text is read.
        pooled_width: width of pooled text vectors, which condition as labels do; None = none are read.
        null_tokens: learned tokens that stand for a text whose mask is all False, with a pooled vector; 0 = none do.
        low_res: concatenate the image "low_res" to x's channels and condition on its "noise_level", if it is there.
        size_numbers: numbers in the condition "size", each embedded like a time (Podell et al. 2023, SDXL, Sec. 2.2);
            None = it is not read.
        remat: keep no activations of blocks for the backward pass.
        scan: compile one block for all; parameters of blocks are stacked.
        dtype: compute dtype; norms, softmax and the final layer stay float32.
    """

    num_classes: int | None = None
    patch_size: int = 2
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 6
    conditioning: str = "adaln_zero"
    mlp_ratio: float = 4.0
    mlp: str = "gelu"
    learn_sigma: bool = False
    spare_channels: bool = False
    registers: int = 0
    qk_norm: str | None = None
    positions: str = "sincos"
    position_size: int | None = None
    null_label: bool = True
    two_times: bool = False
    context_width: int | None = None
    pooled_width: int | None = None
    null_tokens: int = 0
    low_res: bool = False
    size_numbers: int | None = None
    remat: bool = False
    scan: bool = False
    dtype: jnp.dtype = jnp.float32

    presets = PRESETS

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition, s: jax.Array | None = None) -> jax.Array:
        """Noisy images x (B, H, W, C) at network times t (B,) -> (B, H, W, C or 2C) float32.

        Args:
            x, t: as above.
            condition: "label" (B,), "tokens" (B, L, context_width) with "mask" (B, L), "pooled" (B, pooled_width),
                "low_res" (B, h, w, C') and "noise_level" (B,), "size" (B, size_numbers), as the attributes above say.
            s: network times (B,) that the answer leads to; None = t. Only read with two_times.

        Raises:
            UserError: a size that does not divide as the attributes above say, an unknown name, a missing condition.
        """
        self._check(*x.shape[1:3])
        p, d = self.patch_size, self.hidden_size
        rows, columns, channels = x.shape[1] // p, x.shape[2] // p, x.shape[3] * (2 if self.learn_sigma else 1)
        computed = channels * (2 if self.spare_channels else 1)

        if self.low_res:
            low_res = layers.resized(layers.entry(condition, "low_res").astype(x.dtype), *x.shape[1:3])
            x = jnp.concatenate([x, low_res], axis=-1)
        x = Dense(d, dtype=self.dtype, kernel_init=initializers.xavier, name="patch_embedding")(layers.to_patches(x, p))
        x = x + self._positions(rows, columns).astype(x.dtype)  # (B, N, D)
        x, c = self._through(x, t, s, condition, (rows, columns))
        final = FinalLayer(p * p * computed, name="final_layer")  # (B, N, p*p*C')
        answer = layers.from_patches(final(x, c if MODULATIONS[self.conditioning] else None), p, rows)
        return answer[..., :channels]

    @nn.nowrap
    def condition_ranges(self) -> dict[str, tuple[float, float]]:
        """The lowest and the highest number that a condition may be."""
        return {"noise_level": (0.0, 1.0)} if self.low_res else {}

    @nn.nowrap
    def sizes(self, trained: tuple[int, int]) -> tuple[int, int | None]:
        """What sides of images are multiples of, and the largest side after training at `trained`; None = any.

        A fixed table counts from the top left corner, of which smaller images take a part (Peebles & Xie 2023); a
        learned one gives its middle; rotary positions are known at any distance (Su et al. 2021).
        """
        most = {"sincos": max(trained), "learned": self.patch_size * (self.position_size or 0)}
        return self.patch_size, most.get(self.positions)

    def _through(
        self, x: jax.Array, t: jax.Array, s: jax.Array | None, condition: Condition, grid: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens of the image (B, N, D) after all blocks, and what conditioned these: (B, D) or (B, M, D)."""
        if self.context_width is not None:
            condition = with_null(self, condition, self.null_tokens, self.context_width, self.pooled_width)
        vectors = [self._time(t, s, condition), *self._label(condition), *self._pooled(condition)]
        c, lengths = (sum(vectors[1:], vectors[0]) if MODULATIONS[self.conditioning] else jnp.stack(vectors, 1)), None
        prefix = self._registers(len(x))  # tokens before the image's: (B, R, D)
        if self.conditioning == "in_context":
            prefix = jnp.concatenate([prefix, c], axis=1)
        first, count = prefix.shape[1], x.shape[1]
        x = jnp.concatenate([prefix, x], axis=1)
        if self.context_width is not None and self.conditioning == "in_context":
            x, lengths = self._with_text(x, condition)
        elif self.context_width is not None:
            c, lengths = self._with_text(c, condition)
        block = functools.partial(
            DiTBlock, self.num_heads, self.conditioning, self.mlp_ratio, self.mlp, self.qk_norm, self.dtype
        )
        angles = self._angles(first, x.shape[1] - first - count, *grid)
        x = layers.repeat(block, self.depth, x, c, angles, lengths, remat=self.remat, scan=self.scan)
        return x[:, first : first + count], c

    def _time(self, t: jax.Array, s: jax.Array | None, condition: Condition) -> jax.Array:
        """The embedding (B, D) of all times."""
        embed = functools.partial(layers.TimestepEmbedder, self.hidden_size, self.dtype)
        time = embed(name="time_embedding")(t)
        if self.two_times:
            time = time + embed(name="interval_embedding")(jnp.zeros_like(t) if s is None else t - s)
        if self.low_res and "noise_level" in condition:
            time = time + embed(name="noise_embedding")(NOISE_SCALE * condition["noise_level"])
        return time if self.size_numbers is None else time + self._size(layers.entry(condition, "size"))

    def _size(self, size: jax.Array) -> jax.Array:
        """The embedding (B, D) of numbers (B, n)."""
        layers.check_entry("size_numbers", self.size_numbers, size)
        numbers = layers.sinusoidal_embedding(size.reshape(-1)).reshape(len(size), -1)
        return layers.VectorEmbedder(self.hidden_size, self.dtype, name="size_embedding")(numbers)

    def _label(self, condition: Condition) -> list[jax.Array]:
        """The embedding (B, D) of the label, if there is one."""
        if self.num_classes is None or (self.context_width is not None and "label" not in condition):
            return []
        rows = self.num_classes + self.null_label
        table = nn.Embed(rows, self.hidden_size, embedding_init=initializers.small_normal, name="label_embedding")
        return [table(layers.entry(condition, "label")).astype(self.dtype)]

    def _pooled(self, condition: Condition) -> list[jax.Array]:
        """The embedding (B, D) of a text's pooled vector, if it is read."""
        if self.pooled_width is None:
            return []
        embed = layers.VectorEmbedder(self.hidden_size, self.dtype, name="pooled_embedding")
        return [embed(pooled_text(condition, self.pooled_width))]

    def _with_text(self, c: jax.Array, condition: Condition) -> tuple[jax.Array, jax.Array | None]:
        """A sequence (B, M, D) followed by the text's tokens, and how many count (B,)."""
        tokens, lengths = pack(condition, self.context_width or 0)
        text = Dense(self.hidden_size, dtype=self.dtype, kernel_init=initializers.xavier, name="context")(tokens)
        return jnp.concatenate([c, text], axis=1), None if lengths is None else c.shape[1] + lengths

    def _registers(self, batch: int) -> jax.Array:
        shape = (self.registers, self.hidden_size)
        table = self.param("registers", initializers.small_normal, shape) if self.registers else jnp.zeros(shape)
        return jnp.broadcast_to(table.astype(self.dtype), (batch, *shape))

    def _positions(self, rows: int, columns: int) -> jax.Array:
        if self.positions == "learned":
            shape = ((self.position_size or 0) ** 2, self.hidden_size)
            return layers.centre_crop(self.param("positions", initializers.small_normal, shape), rows, columns)
        if self.positions == "sincos":
            return layers.sincos_positions_2d(rows, columns, self.hidden_size)
        return jnp.zeros(())

    def _angles(self, before: int, after: int, rows: int, columns: int) -> jax.Array | None:
        if self.positions != "rotary":
            return None
        angles = attention.rotary_angles(rows, columns, self.hidden_size // self.num_heads)
        return jnp.asarray(np.pad(angles, ((before, after), (0, 0))))  # only patches are turned

    def _check(self, height: int, width: int) -> None:
        layers.require(self, lambda value: value > 0, "must be above 0", "hidden_size", "mlp_ratio")
        counts = ("depth", "registers", "position_size", "null_tokens")
        layers.require(self, lambda value: value >= 0, "must be 0 or more", *counts)
        layers.check_most(self, "hidden_size", "depth")
        widths = ("num_classes", "context_width", "pooled_width", "size_numbers")
        layers.require(self, lambda value: value > 0, "must be above 0", *widths)
        layers.check_choices(
            self, conditioning=MODULATIONS, positions=POSITIONS, mlp=layers.MLPS, qk_norm=attention.QK_NORMS
        )
        if self.context_width is not None and self.conditioning not in READING:
            needs = f"needs model.conditioning {' or '.join(map(repr, READING))}; tokens are not read otherwise"
            raise UserError("model.context_width", self.context_width, needs)
        check_null_tokens(self.null_tokens, self.context_width is not None, "model.context_width")
        layers.check_mlp(self.hidden_size, self.mlp_ratio)
        layers.check_patches(height, width, self.patch_size)
        attention.check_heads(self.hidden_size, self.num_heads)
        layers.require(self, lambda value: value % 4 == 0, "must be a multiple of 4", "hidden_size")


build = DiT
