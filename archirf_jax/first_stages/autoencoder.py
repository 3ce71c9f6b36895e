"""Latents of a frozen autoencoder are diffused, each channel with mean 0 and deviation 1 (Rombach et al. 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Batch, Frozen
from archirf_jax.errors import UserError
from archirf_jax.first_stages.tiling import tiled

RUN = "autoencoder"  # the frozen run
MOMENTS = "moments"  # the batch's key of what the autoencoder made of images beforehand


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """Between images, or what the autoencoder made of them beforehand, and normalized latents.

    Attributes:
        task: of the autoencoder's run.
        mean, std: of the latents, one a channel; None = by the autoencoder's own scaling.
        sample: whether latents are drawn from their distributions; else they are the modes.
        decode_batch: images decoded at a time, to save memory.
        decode_tile, decode_overlap: side of the tiles of latents that are decoded one after the other, and how many
            latents neighbours share; see `tiling`. None = whole images.
    """

    task: Any
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    sample: bool
    decode_batch: int
    decode_tile: int | None
    decode_overlap: int

    def encode(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> jax.Array:
        """Latents (B, h, w, D) of the images of a batch, or of its "moments", drawn by one key an example."""
        params = frozen[RUN]
        encoded = batch[MOMENTS] if MOMENTS in batch else self.task.encoded(params, batch["image"])
        z = self.task.latent(params, encoded, None)
        if self.sample:
            noise = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(keys)
            z = self.task.latent(params, encoded, noise)
        if self.mean is None:
            return self.task.model.normalized(z)
        return (z - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def decode(self, frozen: Frozen, x0: jax.Array) -> jax.Array:
        """Images (B, H, W, C) of latents (B, h, w, D)."""

        def of_tile(z: jax.Array) -> jax.Array:
            images: jax.Array = self.task.decode(frozen[RUN], z)
            return images

        def one(x0: jax.Array) -> jax.Array:
            z = x0[None]
            if self.mean is None:
                z = self.task.model.denormalized(z)
            else:
                z = z * jnp.asarray(self.std) + jnp.asarray(self.mean)
            return tiled(of_tile, z, self.decode_tile, self.decode_overlap)[0]

        return jax.lax.map(one, x0, batch_size=min(self.decode_batch, len(x0)))


def build(
    runs: Mapping[str, Any],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    sample: bool = True,
    decode_batch: int = 16,
    decode_tile: int | None = None,
    decode_overlap: int | None = None,
) -> Autoencoder:
    """The first stage of a run with the frozen run "autoencoder"; `decode_overlap` is a quarter of a tile unless given.

    Raises:
        UserError: there is no such run, or nothing says how large its latents are.
    """
    if RUN not in runs:
        what = "needs the run of an autoencoder: --config.frozen.autoencoder=RUN"
        raise UserError("first_stage.name", RUN, what)
    task = runs[RUN].task
    if not hasattr(task, "latent"):
        raise UserError("frozen.autoencoder", str(runs[RUN].directory), "is not the run of an autoencoder")
    if decode_batch < 1:
        raise UserError("first_stage.decode_batch", decode_batch, "must be 1 or more")
    overlap = _overlap(decode_tile, decode_overlap)
    model = task.model
    if (mean is None) != (std is None) or (mean is not None and std is not None and min(std) <= 0):
        raise UserError("first_stage.std", std, "must be above 0 and given with first_stage.mean, or both None")
    for field, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != model.latent_channels:
            what = f"must hold one number for each of the {model.latent_channels} channels of the latents"
            raise UserError(f"first_stage.{field}", tuple(values), what)
    scaled = (model.scaling_factor, model.shift_factor, model.latents_std) != (1.0, 0.0, None)
    if mean is None and not scaled:
        what = (
            "is not known, and latents that are not normalized train badly; make a latent cache, whose statistics are "
            "taken: python -m archirf_jax.prepare_data --autoencoder=RUN --out=data/latents, then "
            "--config.data.name=latents:data/latents"
        )
        raise UserError("first_stage.mean", message=what)
    known = [None if values is None else tuple(float(each) for each in values) for values in (mean, std)]
    return Autoencoder(task, known[0], known[1], sample, decode_batch, decode_tile, overlap)


def _overlap(tile: int | None, overlap: int | None) -> int:
    if tile is not None and tile < 2:
        raise UserError("first_stage.decode_tile", tile, "must be 2 or more, or None (whole images)")
    if overlap is not None and (tile is None or not 0 < overlap < tile):
        what = "must be 1 or more and below first_stage.decode_tile, or None (a quarter of it)"
        raise UserError("first_stage.decode_overlap", overlap, what)
    return overlap or max((tile or 0) // 4, 1)
