"""The gradient noise scale: noise over signal, whatever the optimizer remembers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.training.update import Update
from tests.training.toys import config, on_module, started, step

SIZE, BATCH, STEPS = 40, 8, 4000
SIGNAL, NOISE = 1.0, 24.0  # squared length of the true gradient, and of what one image's adds to it


def found(steps: int = STEPS, noise: float = NOISE, **changes: Any) -> dict[str, np.ndarray]:
    """Metrics (steps, 2) of steps whose gradients are one vector and noise."""
    update = Update(config(batch_size=BATCH, **changes), "net")
    true = jnp.full((2, SIZE), (SIGNAL / SIZE / 2) ** 0.5)

    @on_module
    def losses(params: Any, drawn: jax.Array, part: Any) -> Any:
        # The kernel is hidden and the bias is none, so that Muon has some of both.
        both = jnp.stack([jnp.ravel(params["layer"]["kernel"]), params["layer"]["bias"]])
        return jnp.sum(both * (true + drawn), axis=(1, 2)), {}, {}

    def one(state: Any, key: jax.Array) -> Any:
        drawn = jax.random.normal(key, (BATCH, 2, SIZE)) * (noise / SIZE / 2) ** 0.5
        return step(update, state, drawn, losses)

    state = started(update, {"layer": {"kernel": jnp.zeros((4, SIZE // 4)), "bias": jnp.zeros(SIZE)}})
    keys = jax.random.split(jax.random.key(0), steps)
    return jax.tree.map(np.asarray, jax.jit(lambda state: jax.lax.scan(one, state, keys)[1])(state))


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation": 4, "optimizer__b1": 0.5},
        {"optimizer__name": "adam", "optimizer__moment_dtype": "bfloat16", "optimizer__clip_norm": 0.1},  # below all
        {"optimizer__name": "lion", "optimizer__b2": 0.99},
        {"optimizer__name": "muon"},
    ],
    ids=str,
)
def test_it_is_noise_over_signal_in_images(changes: dict[str, Any]) -> None:
    """McCandlish et al. 2018, Eq. 2.8: tr(S) / |G|^2 of an image's gradient."""
    pairs = found(**changes)["noise_scale"].astype(np.float64)
    assert not np.any(pairs[0])  # before there is a past
    noise, signal = np.sum(pairs, axis=0)
    assert noise / signal == pytest.approx(NOISE / SIGNAL, rel=0.1)
    if "optimizer__clip_norm" not in changes:
        assert signal / (STEPS - 1) == pytest.approx(SIGNAL, rel=0.1)


@pytest.mark.parametrize("name", ["adamw", "adam", "lion", "muon"])
def test_without_noise_it_is_none_from_the_second_step_on_however_young_the_mean_is(name: str) -> None:
    pairs = found(10, 0.0, optimizer__name=name, optimizer__b1=0.9, optimizer__b2=0.99, optimizer__muon_momentum=0.8)
    np.testing.assert_allclose(pairs["noise_scale"][1:, 0], 0, atol=1e-4)
    np.testing.assert_allclose(pairs["noise_scale"][1:, 1], SIGNAL, rtol=1e-5)


def test_an_optimizer_that_keeps_no_mean_tells_none() -> None:
    assert "noise_scale" not in found(2, optimizer__name="schedule_free_adamw")
