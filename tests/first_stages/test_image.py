"""The first stage that is none: images are diffused as they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from archirf_jax import first_stages, registry


def test_images_are_encoded_and_decoded_as_they_are() -> None:
    stage = registry.build(first_stages, "first_stage.name", "image")
    image = jnp.ones((2, 3, 3, 1))
    batch = {"image": image, "label": jnp.zeros(2, jnp.int32)}
    assert stage.encode({}, batch, jax.random.split(jax.random.key(0), 2)) is image
    assert stage.decode({}, image) is image
