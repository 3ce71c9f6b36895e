"""The driver: end points, keys, noise, solver states, states on the way, and one program whatever the steps.

For pixels x0 ~ N(m, s^2), x_t = (1 - t) x0 + t eps is normal with mean (1 - t) m and variance
S(t)^2 = (1 - t)^2 s^2 + t^2. The exact velocity is E[eps - x0 | x_t = x] = -m + S'(t) / S(t) (x - (1 - t) m).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from archirf_jax.contracts import Denoiser
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process, expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.oracles import gaussian
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.sample import noise, sample
from archirf_jax.samplers.solvers.ddpm import Ddpm
from archirf_jax.samplers.solvers.euler import Euler
from tests.samplers import exact

SHAPE = (2, 3, 1)
FLOW = RectifiedFlow()
KEYS = jax.random.split(jax.random.key(0), 7)
LABELS = {"label": np.arange(7, dtype=np.int32)}
START: Any = np.random.default_rng(0).normal(size=(7, *SHAPE)).astype(np.float32)


def uniform(steps: int, shift: float = 1.0) -> np.ndarray:
    return exact.grid("shifted", FLOW, steps, shift=shift)


def normal(mean: float, std: float, process: Process = FLOW) -> NetworkDenoiser:
    return exact.perfect(process, gaussian(np.full(SHAPE, mean), std, SHAPE))


silent = exact.answers(lambda x, t, y: jnp.zeros_like(x))


def draw(denoise: Denoiser, grid: np.ndarray, keys: jax.Array = KEYS, y: Any = LABELS, **options: Any) -> np.ndarray:
    options = {"solver": Euler(), "shape": SHAPE, **options}
    return np.asarray(jax.jit(lambda keys, y: sample(keys, denoise, y, grid=grid, **options))(keys, y))


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_exact_for_a_single_image_in_any_number_of_steps(steps: int, shift: float) -> None:
    """A point mass has linear paths: x(t) = (1 - t) m + t x(1) at every time of the grid."""
    grid = uniform(steps, shift)
    states = draw(normal(0.7, 0.0), grid, start=START, stride=1)
    t = np.append(1, grid[:, 1])[:, None, None, None, None]
    np.testing.assert_allclose(states, (1 - t) * 0.7 + t * states[0], atol=1e-5)


def test_the_samples_have_the_distribution_of_the_data() -> None:
    """Even Euler's factor on the deviation is known: the product of 1 + h S'/S over the steps."""
    grid = uniform(20)
    factor = 1.0
    for t, t_next in grid:
        factor *= 1 + (t_next - t) * (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2)
    keys = jax.random.split(jax.random.key(1), 500)
    pixels = draw(normal(0.3, 0.5), grid, keys, {}).ravel()
    assert 0.45 < factor < 0.55
    assert scipy.stats.kstest((pixels - 0.3) / factor, "norm").pvalue > 1e-3


# --- where it starts


@pytest.mark.parametrize(
    ("process", "grid"), [(FLOW, "uniform"), (FLOW, "karras"), (EDM(), "uniform"), (DDPM(), "leading")]
)
def test_it_starts_from_normal_noise_as_large_as_the_first_time_has(process: Process, grid: str) -> None:
    keys, way = jax.random.split(jax.random.key(2), 500), exact.grid(grid, process, 2)
    start = draw(NetworkDenoiser(process, silent), way, keys, {}, stride=1)[0]
    size = float(process.sigma(way[0, 0]))
    assert scipy.stats.kstest(start.ravel() / size, "norm").pvalue > 1e-3
    np.testing.assert_allclose(start, size * noise(keys, SHAPE), rtol=1e-6)


def test_it_starts_where_the_process_says() -> None:
    class Elsewhere(RectifiedFlow):
        def prior(self, key: jax.Array, shape: tuple[int, ...], t: Any = 1.0) -> jax.Array:
            return 5 + jax.random.uniform(key, shape)

    states = draw(normal(0.3, 0.5, Elsewhere()), uniform(4), stride=1)
    assert np.all((states[0] >= 5) & (states[0] < 6)) and len(np.unique(states[0])) == states[0].size


def test_it_starts_from_what_it_is_given() -> None:
    """From there the way is the rest of a longer one."""
    grid = uniform(6)
    states = draw(normal(0.3, 0.5), grid, start=START, stride=1)
    again = draw(normal(0.3, 0.5), grid[2:], start=states[2], stride=1)
    np.testing.assert_array_equal(states[0], START)
    np.testing.assert_array_equal(again[0], states[2])
    np.testing.assert_allclose(again, states[2:], atol=1e-6)


def test_a_start_at_which_the_network_means_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="starts at t=1"):
        draw(NetworkDenoiser(RectifiedFlow(prediction="eps"), silent), uniform(3))


# --- states on the way


@functools.cache
def led_to(steps: int) -> np.ndarray:
    """Where so many of seven steps lead."""
    return draw(normal(0.3, 0.5), uniform(7)[:steps], start=START)


@pytest.mark.parametrize("stride", [1, 2, 3, 7, 10])
def test_with_a_stride_come_the_start_every_so_many_states_and_the_last(stride: int) -> None:
    """State i is where the first i steps lead, and the last state is the plain result."""
    grid = uniform(7)
    states = draw(normal(0.3, 0.5), grid, start=START, stride=stride)
    assert states.shape == (1 + -(-7 // stride), 7, *SHAPE)
    np.testing.assert_array_equal(states[0], START)
    for state, steps in zip(states[1:], [*range(stride, 7, stride), 7], strict=True):
        np.testing.assert_allclose(state, led_to(steps), atol=1e-6)


# --- keys and noise


class Diary:
    """A solver that goes nowhere and records its state, its times and its noise; the state counts the steps."""

    def __init__(self) -> None:
        self.pages: list[tuple[int, float, float, np.ndarray]] = []

    def init(self, denoise: Any, grid: np.ndarray, x: jax.Array) -> Any:
        return jnp.zeros((), jnp.int32)

    def step(
        self, noise: jax.Array, denoise: Any, x: jax.Array, t: jax.Array, t_next: jax.Array, condition: Any, state: Any
    ) -> tuple[jax.Array, Any]:
        self.pages.append((int(state), float(t), float(t_next), np.asarray(noise)))
        return x, state + 1


def diary(grid: np.ndarray, keys: jax.Array, stride: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The state before each step (N,), its times (N, 2) and its noise (N, B, H, W, C)."""
    solver = Diary()
    with jax.disable_jit():  # so that it can be read while it runs
        sample(keys, NetworkDenoiser(FLOW, silent), {}, SHAPE, grid=grid, solver=solver, stride=stride)
    states, starts, ends, noises = zip(*solver.pages, strict=True)
    return np.asarray(states), np.stack([starts, ends], axis=1), np.stack(noises)


def test_the_state_of_a_solver_goes_from_step_to_step_along_the_grid() -> None:
    for grid in (uniform(5, 2.0), exact.grid("archirf", FLOW, 5)):
        states, times, _ = diary(grid, KEYS)
        np.testing.assert_array_equal(states, np.arange(5))
        np.testing.assert_allclose(times, grid, atol=1e-7)


def test_every_step_of_every_example_has_noise_of_its_own_that_the_batch_does_not_change() -> None:
    grid = uniform(5)
    _, _, z = diary(grid, KEYS)
    assert z.shape == (5, 7, *SHAPE) and len(np.unique(z)) == z.size
    np.testing.assert_array_equal(diary(grid, KEYS[2:3])[2][:, 0], z[:, 2])
    np.testing.assert_array_equal(diary(grid[:3], KEYS, stride=2)[2], z[:3])


def test_the_noise_of_the_steps_is_standard_normal_and_not_that_of_the_start() -> None:
    class Restless:
        def init(self, denoise: Any, grid: np.ndarray, x: jax.Array) -> Any:
            return ()

        def step(self, z: jax.Array, *rest: Any) -> tuple[jax.Array, Any]:
            return z, rest[-1]

    keys = jax.random.split(jax.random.key(3), 500)
    states = draw(NetworkDenoiser(FLOW, silent), uniform(3), keys, {}, solver=Restless(), stride=1)
    assert scipy.stats.kstest(states[1:].ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(states.reshape(4, -1))
    assert np.max(np.abs(correlation - np.eye(4))) < 5 / np.sqrt(states[0].size)


@pytest.fixture(scope="module")
def mlp() -> NetworkDenoiser:
    """A random network of all pixels, the time and the label."""
    random = np.random.default_rng(0)
    inside, middle, outside = (random.normal(0, 0.6, s).astype(np.float32) for s in ((14, 32), (32, 32), (32, 6)))

    def model_fn(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        h = jnp.concatenate([x.reshape(len(x), -1), t[:, None] / 1000, jax.nn.one_hot(y, 7)], axis=1)
        return (jnp.tanh(jnp.tanh(h @ inside) @ middle) @ outside).reshape(x.shape)

    return NetworkDenoiser(FLOW, exact.answers(model_fn))


@pytest.mark.parametrize("solver", [Euler(), Ddpm()])
def test_a_sample_does_not_depend_on_the_batch_it_is_drawn_in(mlp: Denoiser, solver: Any) -> None:
    """Noise is equal bit for bit; matrix products of another batch size may differ in the last bits, hence 1e-5."""
    grid, keys = uniform(6), jax.random.split(jax.random.key(4), 64)
    labels = {"label": np.arange(64, dtype=np.int32) % 7}
    together = draw(mlp, grid, keys, labels, solver=solver)
    assert np.min(np.std(together, axis=0)) > 0.1
    order = np.random.default_rng(5).permutation(64)
    np.testing.assert_allclose(
        draw(mlp, grid, keys[order], {"label": labels["label"][order]}, solver=solver), together[order], atol=1e-5
    )
    np.testing.assert_allclose(
        draw(mlp, grid, keys[3:4], {"label": labels["label"][3:4]}, solver=solver), together[3:4], atol=1e-5
    )
    np.testing.assert_array_equal(draw(mlp, grid, keys, labels, solver=solver), together)


def test_a_sample_is_the_same_on_eight_devices(mlp: Denoiser) -> None:
    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip("XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight of one CPU")
    mesh = jax.sharding.Mesh(np.asarray(devices[:8]), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    grid, keys = uniform(6), jax.random.split(jax.random.key(4), 64)
    labels = {"label": np.arange(64, dtype=np.int32) % 7}
    run = jax.jit(lambda keys, y: sample(keys, mlp, y, SHAPE, grid=grid, solver=Ddpm()))
    spread = run(jax.device_put(keys, split), jax.device_put(labels, split))
    assert len(spread.sharding.device_set) == 8 and spread.addressable_shards[0].data.shape[0] == 8
    np.testing.assert_allclose(spread, draw(mlp, grid, keys, labels, solver=Ddpm()), atol=1e-5)


def test_another_key_or_another_label_gives_another_sample(mlp: Denoiser) -> None:
    grid = uniform(6)
    same = draw(mlp, grid, KEYS[np.zeros(7, int)])
    assert np.min(scipy.spatial.distance.pdist(same.reshape(7, -1))) > 1e-3
    again = draw(mlp, grid, KEYS, {"label": np.zeros(7, np.int32)})
    assert np.min(scipy.spatial.distance.pdist(again.reshape(7, -1))) > 1e-1


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 2, 1)])
def test_conditions_have_keys_and_data_any_rank(shape: tuple[int, ...]) -> None:
    """A network that answers the velocity away from the mean that it is conditioned on."""

    def towards(x: jax.Array, t: jax.Array, condition: Any, *, s: Any = None) -> Any:
        return (x - expand(condition["mean"], x)) / expand(t / FLOW.time_scale, x), {}

    means = np.linspace(-1, 1, len(KEYS), dtype=np.float32)
    found = draw(NetworkDenoiser(FLOW, towards), uniform(3), y={"mean": means}, shape=shape)
    np.testing.assert_allclose(found, np.broadcast_to(means.reshape(-1, *[1] * len(shape)), found.shape), atol=1e-5)


# --- one program


def test_a_sampler_is_compiled_once_and_holds_one_step_whatever_their_number() -> None:
    traced = []

    @exact.answers
    def counted(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        traced.append(x.shape)
        return x * y[:, None, None, None]

    counts = []
    for steps in (3, 300):
        run = jax.jit(
            lambda keys, y, n=steps: sample(
                keys, NetworkDenoiser(FLOW, counted), y, SHAPE, grid=uniform(n), solver=Euler()
            )
        )
        for seed in range(3):
            run(jax.random.split(jax.random.key(seed), 7), {"label": LABELS["label"] + seed})
        counts.append(len(traced))
    assert counts[1] == 2 * counts[0]
    run(KEYS[:2], {"label": LABELS["label"][:2]})
    assert len(traced) == 3 * counts[0]


def temporary_bytes(solver: Any, steps: int, stride: int) -> int:
    """What the compiled sampler needs in addition to its arguments and results."""
    keys, x = jax.random.split(jax.random.key(0), 4), np.zeros((4, 16, 16, 3), np.float32)
    denoise = NetworkDenoiser(FLOW, exact.answers(lambda x, t, y: jnp.sin(x)))

    def run(keys: jax.Array, x: Any) -> jax.Array:
        return sample(keys, denoise, {}, (16, 16, 3), grid=uniform(steps), solver=solver, start=x, stride=stride)

    return int(jax.jit(run).lower(keys, x).compile().memory_analysis().temp_size_in_bytes)


@pytest.mark.parametrize(("solver", "states"), [(Ddpm(), 0), (Euler(), 1), (Euler(), 5)])
def test_memory_does_not_grow_with_the_number_of_steps(solver: Any, states: int) -> None:
    """Only the grid does; 990 more states, or the noise of so many steps, would need 12 MB."""
    few, many = (temporary_bytes(solver, steps, steps // states if states else 0) for steps in (10, 1000))
    assert many < few + 32 * 990
    assert few < 200_000
