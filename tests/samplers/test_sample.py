"""Laws of the driver and its solvers: exact end points, orders of convergence, keys, memory, trajectories.

For pixels x0 ~ N(m, s^2), x_t = (1 - t) x0 + t eps is normal with mean (1 - t) m and variance
S(t)^2 = (1 - t)^2 s^2 + t^2. Regressing eps - x0 on x_t gives the exact velocity

    v(x, t) = E[eps - x0 | x_t = x] = -m + S'(t) / S(t) (x - (1 - t) m),   S S' = t - (1 - t) s^2,

so d/dt (x - (1 - t) m) = S'/S (x - (1 - t) m): the deviation from the mean grows as S. As S(1) = 1,

    x(t) = (1 - t) m + S(t) x(1),   and the end point is x(0) = m + s x(1).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from archirf_jax import registry
from archirf_jax.models.dit import DiT
from archirf_jax.processes.base import ModelFn
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import grids, solvers
from archirf_jax.samplers.sample import sample
from archirf_jax.samplers.solvers.euler import Euler

SHAPE = (2, 3, 1)
FLOW = RectifiedFlow()
KEYS = jax.random.split(jax.random.key(0), 7)
LABELS = np.asarray([0, 1, 2, 3, 4, 5, 6], np.int32)
ORDERS = {"euler": 1}  # every solver and the order of its global error


def gaussian(mean: float, deviation: float) -> ModelFn:
    """The exact network for pixels from N(mean, deviation^2)."""

    def velocity(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        tt = (t / FLOW.time_scale)[:, None, None, None]
        variance = (1 - tt) ** 2 * deviation**2 + tt**2
        return -mean + (tt - (1 - tt) * deviation**2) / variance * (x - (1 - tt) * mean)

    return velocity


def draw(model_fn: ModelFn, grid: np.ndarray, keys: jax.Array = KEYS, y: Any = LABELS, **options: Any) -> np.ndarray:
    options = {"solver": Euler(), "process": FLOW, "shape": SHAPE, **options}
    return np.asarray(sample(keys, model_fn=model_fn, y=y, grid=grid, **options))


def test_every_solver_has_its_order_tested() -> None:
    assert set(registry.names(solvers)) == set(ORDERS)


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_the_error_at_the_end_falls_with_the_order_of_the_solver(name: str, order: int) -> None:
    solver = registry.build(solvers, "solver", name)
    steps = np.asarray([16, 32, 64, 128])
    with jax.enable_x64(True):
        errors = []
        for n in steps:
            states = draw(gaussian(0.3, 0.5), grids.linspace(n), KEYS[:2], LABELS[:2], solver=solver, trajectory=True)
            assert states.dtype == np.float64
            errors.append(np.max(np.abs(states[-1] - (0.3 + 0.5 * states[0]))))
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert -order - 0.1 < slope < -order + 0.1, errors
    assert errors[-1] < 0.05


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_exact_for_a_single_image_in_any_number_of_steps(steps: int, shift: float) -> None:
    """A point mass has straight paths: x(t) = (1 - t) m + t x(1) at every time of the grid."""
    grid = grids.linspace(steps, shift)
    states = draw(gaussian(0.7, 0.0), grid, trajectory=True)
    t = grid[:, None, None, None, None]
    np.testing.assert_allclose(states, (1 - t) * 0.7 + t * states[0], atol=1e-5)


def test_the_pictures_have_the_distribution_of_the_data() -> None:
    """Even Euler's factor on the deviation is known: the product of 1 + h S'/S over the steps."""
    grid = grids.linspace(20)
    factor = 1.0
    for t, t_next in zip(grid[:-1], grid[1:], strict=True):
        factor *= 1 + (t_next - t) * (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2)
    keys = jax.random.split(jax.random.key(1), 500)
    pixels = draw(gaussian(0.3, 0.5), grid, keys, np.zeros(500, np.int32)).ravel()
    assert 0.45 < factor < 0.55
    assert scipy.stats.kstest((pixels - 0.3) / factor, "norm").pvalue > 1e-3


def test_a_trajectory_starts_at_the_prior_and_ends_at_the_plain_result() -> None:
    class Elsewhere(RectifiedFlow):
        def prior(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return 5 + jax.random.uniform(key, shape)

    grid = grids.linspace(4)
    states = draw(gaussian(0.3, 0.5), grid, trajectory=True, process=Elsewhere())
    assert states.shape == (5, len(KEYS), *SHAPE)
    assert np.all((states[0] >= 5) & (states[0] < 6)) and len(np.unique(states[0])) == states[0].size
    np.testing.assert_allclose(states[-1], draw(gaussian(0.3, 0.5), grid, process=Elsewhere()), atol=1e-6)


def test_the_noise_is_standard_normal() -> None:
    keys = jax.random.split(jax.random.key(2), 500)
    states = draw(lambda x, t, y: jnp.zeros_like(x), grids.linspace(1), keys, np.zeros(500, np.int32), trajectory=True)
    np.testing.assert_array_equal(states[0], states[1])
    assert scipy.stats.kstest(states[0].ravel(), "norm").pvalue > 1e-3


class Diary:
    """A solver that goes nowhere and writes down its memory, its times and its keys; the memory counts the steps."""

    def __init__(self) -> None:
        self.pages: list[tuple[int, float, float, np.ndarray]] = []

    def init(self, x: jax.Array) -> Any:
        return jnp.zeros((), jnp.int32)

    def step(
        self,
        keys: jax.Array,
        process: Any,
        model_fn: ModelFn,
        x: jax.Array,
        t: jax.Array,
        t_next: jax.Array,
        y: Any,
        memory: Any,
    ) -> tuple[jax.Array, Any]:
        def write(memory: Any, t: Any, t_next: Any, words: Any) -> None:
            self.pages.append((int(memory), float(t), float(t_next), np.array(words)))

        jax.debug.callback(write, memory, t, t_next, jax.random.key_data(keys), ordered=True)
        return x, memory + 1


def diary(grid: np.ndarray, keys: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The memory before each step (N,), its times (N, 2) and its keys (N, B, 2 words)."""
    solver = Diary()
    draw(gaussian(0, 1), grid, keys, np.zeros(len(keys), np.int32), solver=solver)
    jax.effects_barrier()
    memories, starts, ends, words = zip(*solver.pages, strict=True)
    return np.asarray(memories), np.stack([starts, ends], axis=1), np.stack(words)


def test_the_memory_of_a_solver_goes_from_step_to_step_along_the_grid() -> None:
    grid = grids.linspace(5, 2.0)
    memories, times, _ = diary(grid, KEYS)
    np.testing.assert_array_equal(memories, np.arange(5))
    np.testing.assert_allclose(times, np.stack([grid[:-1], grid[1:]], axis=1), rtol=1e-6)


def test_every_step_of_every_picture_has_a_key_of_its_own_that_the_batch_does_not_change() -> None:
    grid = grids.linspace(5)
    _, _, keys = diary(grid, KEYS)
    assert keys.shape == (5, 7, 2) and len(np.unique(keys.reshape(-1, 2), axis=0)) == 5 * 7
    np.testing.assert_array_equal(diary(grid, KEYS[2:3])[2][:, 0], keys[:, 2])


def test_the_noise_of_the_steps_is_not_the_noise_of_the_start() -> None:
    class Restless:
        def init(self, x: jax.Array) -> Any:
            return ()

        def step(self, keys: jax.Array, process: Any, model_fn: Any, x: jax.Array, *rest: Any) -> tuple[jax.Array, Any]:
            return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys), rest[-1]

    keys = jax.random.split(jax.random.key(3), 300)
    states = draw(gaussian(0, 1), grids.linspace(3), keys, np.zeros(300, np.int32), solver=Restless(), trajectory=True)
    correlation = np.corrcoef(states.reshape(4, -1))
    assert np.max(np.abs(correlation - np.eye(4))) < 5 / np.sqrt(states[0].size)


@pytest.fixture(scope="module")
def network() -> Any:
    model = DiT(num_classes=7, patch_size=1, hidden_size=8, depth=1, num_heads=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *SHAPE)), np.zeros(1), np.zeros(1, np.int32))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    return lambda x, t, y: model.apply(params, x, t, y)


def test_a_picture_does_not_depend_on_the_batch_it_is_drawn_in(network: ModelFn) -> None:
    """Keys are equal bit for bit; matrix products of another batch size may differ in the last bits, hence 1e-5."""
    grid = grids.linspace(6)
    together = draw(network, grid)
    assert np.min(np.std(together, axis=0)) > 0.1
    order = np.asarray([6, 2, 0, 1, 5, 3, 4])
    np.testing.assert_allclose(draw(network, grid, KEYS[order], LABELS[order]), together[order], atol=1e-5)
    np.testing.assert_allclose(draw(network, grid, KEYS[3:4], LABELS[3:4]), together[3:4], atol=1e-5)
    np.testing.assert_array_equal(draw(network, grid), together)


def test_another_key_or_another_label_gives_another_picture(network: ModelFn) -> None:
    grid = grids.linspace(6)
    same = draw(network, grid, KEYS[np.zeros(7, int)])
    assert np.min(scipy.spatial.distance.pdist(same.reshape(7, -1))) > 1e-3
    again = draw(network, grid, KEYS, np.zeros(7, np.int32))
    assert np.min(scipy.spatial.distance.pdist(again.reshape(7, -1))) > 1e-1


def test_conditions_may_be_trees() -> None:
    def towards(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        return (x - y["mean"][:, None, None, None]) / (t / FLOW.time_scale)[:, None, None, None]

    means = np.linspace(-1, 1, len(KEYS), dtype=np.float32)
    pictures = draw(towards, grids.linspace(3), y={"mean": means})
    np.testing.assert_allclose(pictures, np.broadcast_to(means[:, None, None, None], pictures.shape), atol=1e-5)
