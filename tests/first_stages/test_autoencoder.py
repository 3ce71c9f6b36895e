"""Laws of latents as what is diffused: normalized, the same from a cache as on the fly, and back."""

from __future__ import annotations

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax import first_stages, registry
from archirf_jax.errors import UserError
from archirf_jax.tasks.building import make_task
from configs import autoencoder
from tests.tasks.settings import config, moved
from tests.tasks.test_autoencoder import BATCH, KL, SMALL

SCALED = {"model": KL["model"] | {"latent_channels": 2, "scaling_factor": 0.5, "shift_factor": 0.1}}
STATISTICS = dict(mean=(0.3, -0.2), std=(2.0, 0.5))
KEYS = jax.random.split(jax.random.key(1), len(BATCH["image"]))


@functools.cache
def run(changes: str) -> Any:
    task: Any = make_task(config(autoencoder, eval(changes), SMALL))
    params = moved(jax.eval_shape(task.init_params, jax.random.key(0), {}), scale=0.3)
    return types.SimpleNamespace(task=task, params=params, directory="runs/ae")


def stage(changes: dict[str, Any], **fields: Any) -> tuple[Any, Any]:
    made = run(repr(changes))
    given = registry.build(
        first_stages,
        "first_stage.name",
        "autoencoder",
        fields,
        kind=("encode", "decode"),
        offered={"runs": {"autoencoder": made}},
    )
    return given, {"autoencoder": made.params}


@pytest.mark.parametrize("changes", [{}, SCALED], ids=["bounded", "kl"])
@pytest.mark.parametrize("sample", [True, False])
def test_latents_from_a_cache_are_those_of_the_images(changes: dict[str, Any], sample: bool) -> None:
    first, frozen = stage(changes, sample=sample, **STATISTICS)
    on_the_fly = first.encode(frozen, BATCH, KEYS)
    encoded = run(repr(changes)).task.encoded(frozen["autoencoder"], BATCH["image"])
    cached = first.encode(frozen, {"moments": encoded.astype(jnp.float16).astype(jnp.float32)}, KEYS)
    np.testing.assert_allclose(cached, on_the_fly, atol=5e-3)
    assert np.array_equal(first.encode(frozen, {"moments": encoded}, KEYS), on_the_fly)


def test_latents_are_drawn_by_one_key_an_example_and_modes_by_none() -> None:
    drawn, frozen = stage(SCALED, **STATISTICS)
    modes, _ = stage(SCALED, sample=False, **STATISTICS)
    other = jax.random.split(jax.random.key(2), len(KEYS))
    first, second = (np.asarray(drawn.encode(frozen, BATCH, keys)) for keys in (KEYS, KEYS.at[1:].set(other[1:])))
    np.testing.assert_allclose(first[0], second[0], atol=1e-6)
    assert np.all(np.any(first[1:] != second[1:], axis=(1, 2, 3)))
    assert np.array_equal(modes.encode(frozen, BATCH, KEYS), modes.encode(frozen, BATCH, other))


@pytest.mark.parametrize("statistics", [STATISTICS, {}])
def test_decoding_undoes_the_normalization(statistics: dict[str, Any]) -> None:
    first, frozen = stage(SCALED, sample=False, decode_batch=3, **statistics)
    task, params = run(repr(SCALED)).task, frozen["autoencoder"]
    x0 = first.encode(frozen, BATCH, KEYS)
    z = task.encode(params, BATCH["image"])
    mean, std = (np.asarray(statistics.get(name, default)) for name, default in (("mean", 0.1), ("std", 1 / 0.5)))
    np.testing.assert_allclose(x0, (z - mean) / std, atol=1e-5)
    np.testing.assert_allclose(first.decode(frozen, x0), task.decode(params, z), atol=1e-4)


def test_tiles_are_decoded_alone_and_a_large_one_is_the_whole_image() -> None:
    whole, frozen = stage(SCALED, sample=False)
    x0 = whole.encode(frozen, BATCH, KEYS)
    tiles = (x0.shape[1], 3)
    large, small = (stage(SCALED, sample=False, decode_tile=tile)[0].decode(frozen, x0) for tile in tiles)
    expected = whole.decode(frozen, x0)
    assert np.array_equal(large, expected)
    assert small.shape == expected.shape and 0 < np.max(np.abs(small - expected)) < np.ptp(expected)


@pytest.mark.parametrize(
    ("changes", "fields", "field"),
    [
        ({}, {}, "first_stage.mean"),
        (SCALED, dict(mean=(0.0, 0.0)), "first_stage.std"),
        (SCALED, dict(mean=(0.0, 0.0), std=(1.0, 0.0)), "first_stage.std"),
        (SCALED, dict(mean=(0.0,), std=(1.0,)), "first_stage.mean"),
        (SCALED, dict(decode_batch=0), "first_stage.decode_batch"),
        (SCALED, dict(decode_tile=1), "first_stage.decode_tile"),
        (SCALED, dict(decode_tile=4, decode_overlap=4), "first_stage.decode_overlap"),
        (SCALED, dict(decode_overlap=1), "first_stage.decode_overlap"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        stage(changes, **fields)
    assert caught.value.field == field


def test_the_run_of_an_autoencoder_is_needed() -> None:
    network = types.SimpleNamespace(task=object(), directory="runs/dit")
    for runs, field in (({}, "first_stage.name"), ({"autoencoder": network}, "frozen.autoencoder")):
        with pytest.raises(UserError) as caught:
            registry.build(first_stages, "first_stage.name", "autoencoder", STATISTICS, offered={"runs": runs})
        assert caught.value.field == field
