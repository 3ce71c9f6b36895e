"""SiT's and REPA's weights are DiT's with other meanings: velocities, in time to the data or to the noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from archirf_jax.interop.files import Tensor
from archirf_jax.models.dit import DiT
from archirf_jax.tasks.building import make_task
from archirf_jax.tasks.published import export, load
from tests.tasks.test_published import GOLDEN, cases

# Golden case of DiT -> heads and channels, with and without the second half of the answer that SiT drops.
CASES = {"dit_learn_sigma": (3, 4), "dit_patch4": (4, 3)}
each_source = pytest.mark.parametrize(("source", "name"), [("sit", "dit_learn_sigma"), ("repa", "dit_patch4")])


def tensors(name: str) -> dict[str, np.ndarray]:
    return {key: np.asarray(value) for key, value in cases.load(GOLDEN / f"{name}.npz").params.items()}


def imported(source: str, name: str, state: dict[str, np.ndarray]) -> tuple[Any, Any, Any]:
    lazy = {key: Tensor(value.shape, lambda value=value: value) for key, value in state.items()}
    config, params = load(source, lazy, dict(num_heads=CASES[name][0], image_size=16))
    config = ml_collections.ConfigDict(config).lock()
    return config, make_task(config), params


@each_source
def test_the_answer_is_a_velocity_in_the_time_of_the_source(source: str, name: str) -> None:
    config, task, params = imported(source, name, tensors(name))
    fields = {key: value for key, value in config.model.to_dict().items() if key not in ("name", "spare_channels")}
    theirs = DiT(num_classes=config.data.num_classes, learn_sigma=config.model.spare_channels, **fields)
    channels = CASES[name][1]
    x = jax.random.normal(jax.random.key(0), (3, 16, 16, channels))
    t, label = jnp.asarray([0.1, 0.5, 0.9]), jnp.asarray([0, 1, 2])
    predicted, _ = jax.jit(task.network_denoiser(params).__call__)(x, t, {"label": label}, ())

    their_time = 1 - t if source == "sit" else t
    answer = jax.jit(theirs.apply)({"params": params["model"]}, x, their_time, {"label": label})
    assert answer.shape[-1] == channels * (2 if name == "dit_learn_sigma" else 1)
    towards_noise = predicted.eps - predicted.x0
    velocity = -towards_noise if source == "sit" else towards_noise
    np.testing.assert_allclose(velocity, answer[..., :channels], atol=2e-5)
    at = t[:, None, None, None]
    np.testing.assert_allclose((1 - at) * predicted.x0 + at * predicted.eps, x, atol=2e-5)


@each_source
def test_tensors_come_back_bit_for_bit_under_their_names(source: str, name: str) -> None:
    state = tensors(name)
    extra = {"projectors.0.0.weight": np.ones((4, 4), np.float32)} if source == "repa" else {}
    config, task, params = imported(source, name, state | extra)
    back = export(config, task, params)
    assert back.keys() == state.keys()
    assert all(np.asarray(back[key]).tobytes() == state[key].tobytes() for key in state)


def test_sampling_reaches_the_data_that_a_perfect_network_of_sit_knows() -> None:
    config, task, params = imported("sit", "dit_patch4", tensors("dit_patch4"))
    assert (config.process.towards, config.sample.guidance.scale) == ("data", 4.0)
    process: Any = task.process
    data, eps = jnp.full((4, 2, 2, 1), 0.3), jax.random.normal(jax.random.key(1), (4, 2, 2, 1))
    for t in (0.05, 0.5, 1.0):
        times = jnp.full(4, t)
        x = process.noised(data, eps, times)
        time = np.asarray(process.network_time(times))
        # Ma et al. 2024, Sec. 2: x_t = alpha_t x_* + sigma_t eps with data at time 1: alpha = t, sigma = 1 - t.
        np.testing.assert_allclose(x, time[0] * data + (1 - time[0]) * eps, atol=1e-6)
        found = process.interpret(data - eps, x, times)
        np.testing.assert_allclose(found.x0, data, atol=1e-5)
        np.testing.assert_allclose(found.eps, eps, atol=1e-5)
