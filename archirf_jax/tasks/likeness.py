"""How alike images are to what an autoencoder makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.data.images import to_uint8
from archirf_jax.evaluation import distances, reference
from archirf_jax.evaluation.features import Extractor
from archirf_jax.objectives import structural
from archirf_jax.tasks.evaluating import Figure, Figures, RealImages

BLACK_TO_WHITE = 255
KINDS = ("psnr", "ssim", "ms_ssim", "lpips", "frechet")


class Reconstructed(NamedTuple):
    """Images (N, H, W, C) and what came back of them, both uint8."""

    images: np.ndarray
    made: np.ndarray


def reconstruct(task: Any, params: Any, frozen: Any, images: RealImages, count: int) -> Iterator[Reconstructed]:
    """Real images, and what the modes of their latents are decoded to, in batches; `count` in all."""
    compute = jax.jit(task.reconstruct)
    for n, batch, _ in images.finished(count, jax.random.key(0), "reconstructions"):
        made = to_uint8(np.asarray(compute(params, frozen, batch["image"])))
        yield Reconstructed(to_uint8(np.asarray(batch["image"]))[:n], made[:n])


def measure(
    batches: Sequence[Reconstructed],
    images: RealImages,
    wanted: Sequence[str],
    extractor: Extractor | None = None,
    lpips: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Figures:
    """Figures of reconstructions.

    Args:
        batches: all of them.
        images: where they are from.
        wanted: some of KINDS. "psnr" is 10 log10(255^2 / MSE) with the mean square error of all levels of all images;
            "ssim", "ms_ssim" and "lpips" are means over the images.
        extractor: the features of "frechet": the distance of what came back from the same images.
        lpips: two batches of images in [-1, 1] -> distances (B,).
    """
    pairs: dict[str, Callable[[Any, Any], Any]] = {
        "ssim": jax.jit(lambda a, b: structural.ssim(a, b, BLACK_TO_WHITE)),
        "ms_ssim": jax.jit(lambda a, b: structural.ms_ssim(a, b, BLACK_TO_WHITE)),
    }
    if lpips is not None:
        pairs["lpips"] = lambda a, b: lpips(2 * a / BLACK_TO_WHITE - 1, 2 * b / BLACK_TO_WHITE - 1)
    figures: Figures = {}
    for name in wanted:
        if name == "psnr":
            figures[name] = Figure(_psnr(batches))
        elif name == "frechet":
            assert extractor is not None, "the caller makes one for this figure"
            figures[name] = Figure(_frechet(batches, images, extractor))
        else:
            figures[name] = images.mean(np.concatenate([_each(pairs[name], *batch) for batch in batches]))
    return figures


def _psnr(batches: Sequence[Reconstructed]) -> float:
    total = sum(int(np.sum(np.square(batch.images.astype(np.int64) - batch.made))) for batch in batches)
    error = total / sum(batch.images.size for batch in batches)
    return 10 * math.log10(BLACK_TO_WHITE**2 / error) if error else math.inf


def _each(of: Callable[[Any, Any], Any], images: np.ndarray, made: np.ndarray) -> np.ndarray:
    return np.asarray(of(jnp.asarray(images, jnp.float32), jnp.asarray(made, jnp.float32)))


def _frechet(batches: Sequence[Reconstructed], images: RealImages, extractor: Extractor) -> float:
    count = sum(len(batch.images) for batch in batches)
    there, back = (
        reference.gather((getattr(batch, name) for batch in batches), extractor, count, images.batch_size, images.place)
        for name in ("made", "images")
    )
    return float(distances.frechet(there.moments, back.moments))
