"""Features by which images are compared: their pixels, or what a network computes from them."""

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


class Features(NamedTuple):
    """Features of a batch of images.

    Attributes:
        features: (B, D) float32.
        log_p: (B, K) logarithms of p(y | image); None where there are no classes.
    """

    features: Any
    log_p: Any = None


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Turns images into features.

    Attributes:
        name: for people.
        identity: changes whenever the features of an image do; "" = it is unknown.
        extract: compiled, uint8 images (B, H, W, C) -> `Features`.
        labelled: whether its classes are the data's labels.
    """

    name: str
    identity: str
    extract: Callable[[jax.Array], Features]
    labelled: bool = False


def pixels() -> Extractor:
    """Pixels in [-1, 1]; images of more than 32 a side are averaged to 32."""

    def extract(images: jax.Array) -> Features:
        x = images.astype(jnp.float32) / 127.5 - 1
        if x.shape[1] > SIDE:
            x = jax.image.resize(x, (len(x), SIDE, SIDE, x.shape[-1]), "linear", antialias=True)
        return Features(x.reshape(len(x), -1))

    return Extractor("pixels", f"pixels {SIDE}", jax.jit(extract))


def inception(params: Any) -> Extractor:
    """Inception's 2,048 features and its classes, in float32 whatever the device; grey images are repeated to RGB."""
    network = Inception()

    def extract(params: Any, images: jax.Array) -> Features:
        with jax.default_matmul_precision("highest"):
            activations: Any = network.apply({"params": params}, jnp.broadcast_to(images, (*images.shape[:-1], 3)))
        return Features(activations.pool3, jax.nn.log_softmax(activations.unbiased))

    compiled = jax.jit(extract)
    return Extractor("inception", f"inception {digest(params)}", lambda images: compiled(params, images))


def classifier(
    name: str,
    about: str,
    params: Any,
    features: Callable[[Any, jax.Array], jax.Array],
    log_p: Callable[[Any, jax.Array], jax.Array],
) -> Extractor:
    """Features of a classifier of the data's own labels.

    Args:
        name: for people.
        about: what else than its parameters its features depend on.
        params: of the classifier.
        features: (params, images (B, H, W, C) in [-1, 1]) -> (B, h, w, D), whose means over positions are compared.
        log_p: (params, images) -> (B, K).
    """

    def extract(params: Any, images: jax.Array) -> Features:
        x = images.astype(jnp.float32) / 127.5 - 1
        return Features(jnp.mean(features(params, x), axis=(1, 2)), log_p(params, x))

    compiled = jax.jit(extract)
    return Extractor(
        name, f"classifier {about} {digest(params)}", lambda images: compiled(params, images), labelled=True
    )


def python_file(name: str, features: Callable[[np.ndarray], np.ndarray]) -> Extractor:
    """What a function of images (B, H, W, C) float32 in [-1, 1] gives: (B, D), or (B, ..., D) whose means are compared.

    Raises:
        UserError: when it gives something else.
    """

    def extract(images: jax.Array) -> Features:
        found = features((np.asarray(images, np.float32) - 127.5) / 127.5).astype(np.float32)
        if found.ndim < 2 or len(found) != len(images) or not found.size:
            raise UserError(
                "features",
                message=f"{name} gave an array of shape {found.shape} for {len(images)} images; it must be "
                f"({len(images)}, dim), ({len(images)}, tokens, dim) or ({len(images)}, h, w, dim)",
            )
        return Features(found.reshape(len(found), -1, found.shape[-1]).mean(axis=1))

    return Extractor(name, "", extract)


def digest(tree: Any) -> str:
    """A digest of every number of a tree of arrays, and of their names."""
    hashed = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        hashed.update(jax.tree_util.keystr(path).encode())
        hashed.update(np.ascontiguousarray(leaf).tobytes())
    return hashed.hexdigest()
