"""What images are compared by: their pixels, or what a network sees in them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.evaluation.inception import Inception

SIDE = 32  # pixels a side that larger images are averaged to, where pixels are the features


class Seen(NamedTuple):
    """What is seen in a batch of images.

    Attributes:
        features: (B, D) float32.
        log_p: (B, K) logarithms of p(y | image); None where no class is told.
    """

    features: Any
    log_p: Any = None


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Sees images.

    Attributes:
        name: for people.
        identity: changes whenever the features of an image do; "" = nobody knows.
        look: compiled, uint8 images (B, H, W, C) -> `Seen`.
        labelled: whether the classes that it tells are the data's labels.
    """

    name: str
    identity: str
    look: Callable[[jax.Array], Seen]
    labelled: bool = False


def pixels() -> Extractor:
    """Pixels in [-1, 1]; images of more than 32 a side are averaged to 32."""

    def look(images: jax.Array) -> Seen:
        x = images.astype(jnp.float32) / 127.5 - 1
        if x.shape[1] > SIDE:
            x = jax.image.resize(x, (len(x), SIDE, SIDE, x.shape[-1]), "linear", antialias=True)
        return Seen(x.reshape(len(x), -1))

    return Extractor("pixels", f"pixels {SIDE}", jax.jit(look))


def inception(params: Any) -> Extractor:
    """Inception's 2,048 features and its classes, in float32 whatever the device; grey images are seen as grey RGB."""
    network = Inception()

    def look(params: Any, images: jax.Array) -> Seen:
        with jax.default_matmul_precision("highest"):
            said: Any = network.apply({"params": params}, jnp.broadcast_to(images, (*images.shape[:-1], 3)))
        return Seen(said.pool3, jax.nn.log_softmax(said.unbiased))

    compiled = jax.jit(look)
    return Extractor("inception", f"inception {digest(params)}", lambda images: compiled(params, images))


def classifier(
    name: str,
    about: str,
    params: Any,
    features: Callable[[Any, jax.Array], jax.Array],
    log_p: Callable[[Any, jax.Array], jax.Array],
) -> Extractor:
    """What a classifier of the data's own labels sees.

    Args:
        name: for people.
        about: what else than its parameters its features depend on.
        params: of the classifier.
        features: (params, images (B, H, W, C) in [-1, 1]) -> (B, h, w, D), whose means over positions are compared.
        log_p: (params, images) -> (B, K).
    """

    def look(params: Any, images: jax.Array) -> Seen:
        x = images.astype(jnp.float32) / 127.5 - 1
        return Seen(jnp.mean(features(params, x), axis=(1, 2)), log_p(params, x))

    compiled = jax.jit(look)
    return Extractor(
        name, f"classifier {about} {digest(params)}", lambda images: compiled(params, images), labelled=True
    )


def somebodys(name: str, features: Callable[[np.ndarray], np.ndarray]) -> Extractor:
    """What a function of images (B, H, W, C) float32 in [-1, 1] gives: (B, D), or (B, ..., D) whose means are compared.

    Raises:
        UserError: when it gives something else.
    """

    def look(images: jax.Array) -> Seen:
        found = features((np.asarray(images, np.float32) - 127.5) / 127.5).astype(np.float32)
        if found.ndim < 2 or len(found) != len(images) or not found.size:
            raise UserError(
                f"--features: {name} gave an array of shape {found.shape} for {len(images)} images; it must be "
                f"({len(images)}, dim), ({len(images)}, tokens, dim) or ({len(images)}, h, w, dim)"
            )
        return Seen(found.reshape(len(found), -1, found.shape[-1]).mean(axis=1))

    return Extractor(name, "", look)


def digest(tree: Any) -> str:
    """Of every number of a tree of arrays, and of their names."""
    hashed = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        hashed.update(jax.tree_util.keystr(path).encode())
        hashed.update(np.ascontiguousarray(leaf).tobytes())
    return hashed.hexdigest()
