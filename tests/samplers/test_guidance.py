"""Guidance: what it predicts, its cost, its interval, and that scale 1 is off.

Predictions are affine in the network's answer, so most of this is stated of the answers of a made-up network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Denoiser
from archirf_jax.errors import UserError
from archirf_jax.processes import oracles
from archirf_jax.processes.base import Process, expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import denoisers
from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.guidance.adaptive_projected import AdaptiveProjected
from archirf_jax.samplers.guidance.autoguidance import Autoguidance
from archirf_jax.samplers.guidance.base import is_inside, with_null
from archirf_jax.samplers.guidance.classifier_free import ClassifierFree
from archirf_jax.samplers.sample import sample
from archirf_jax.samplers.solvers.euler import Euler
from archirf_jax.samplers.solvers.heun import Heun
from tests.samplers import exact

B = 3
X: Any = np.random.default_rng(0).normal(size=(B, 2, 3, 4))
T: Any = np.asarray([0.3, 0.55, 0.8])
Y: Any = {"label": np.asarray([1, 2, 3], np.int32)}
NULL = {"label": np.int32(7)}
NOTHING = {"label": np.full(B, 7)}
FLOW = RectifiedFlow()
PROCESSES: dict[str, Process] = {
    "velocity": FLOW,
    **{f"vp-{name}": RectifiedFlow(path="vp", prediction=name) for name in ("x0", "eps", "v")},
    "learned_range": DDPM(variance="learned_range"),
    "edm": EDM(),
}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def strong(process: Process = FLOW, factor: float = 1.0) -> NetworkDenoiser:
    """A network that depends on everything, differently in each channel."""

    def model_fn(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        both = jnp.concatenate([x, 2 * x], axis=-1)[..., : process.output_channels(x.shape[-1])]
        return factor * jnp.sin(both * expand(y, x) + expand(t, x) / 100)

    return NetworkDenoiser(process, exact.answers(model_fn))


def ask(denoise: Denoiser, condition: Any = Y, x: Any = X, t: Any = T) -> Any:
    x = jnp.asarray(x)
    return jax.tree.map(np.asarray, denoise(x, jnp.asarray(t), condition, denoise.init(x))[0])


def answer(process: Process, prediction: Any) -> np.ndarray:
    """What the network said of the image's channels."""
    return np.asarray(process.target(*map(jnp.asarray, prediction[:2]), jnp.asarray(T)))


def guided(name: str, inner: NetworkDenoiser, *options: Any) -> Any:
    weak = strong(inner.process, 0.5)
    return ClassifierFree(inner, NULL, *options) if name == "classifier_free" else Autoguidance(inner, weak, *options)


KINDS = ("classifier_free", "autoguidance")


@pytest.mark.parametrize(
    ("process", "name", "scale"),
    [
        *((process, "classifier_free", 4.0) for process in PROCESSES.values()),
        *((PROCESSES[key], "autoguidance", 4.0) for key in ("velocity", "learned_range")),
        (FLOW, "classifier_free", 0.0),
        (FLOW, "autoguidance", 0.5),
    ],
)
def test_guidance_extrapolates_the_answer_and_keeps_the_conditional_variance(
    process: Process, name: str, scale: float
) -> None:
    inner = strong(process)
    conditional = ask(inner)
    other = ask(inner, NOTHING) if name == "classifier_free" else ask(strong(process, 0.5))
    found = ask(guided(name, inner, scale))
    first, second = answer(process, conditional), answer(process, other)
    np.testing.assert_allclose(answer(process, found), second + scale * (first - second), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(process.noised(found.x0, found.eps, jnp.asarray(T)), X, atol=1e-9)
    assert (found.variance is None) == (conditional.variance is None)
    if found.variance is not None:
        np.testing.assert_array_equal(found.variance, conditional.variance)


@pytest.mark.parametrize("name", KINDS)
def test_scale_one_is_the_inner_denoiser_bit_for_bit(name: str) -> None:
    for options in ((1,), (1.0, (0.0, 0.5)), (1.0, (0.0, 0.5), 0.7)):
        for one, other in zip(ask(guided(name, strong(), *options))[:2], ask(strong())[:2], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 2, 4)])
def test_guidance_takes_data_of_any_rank(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).normal(size=(B, *shape))
    inner = strong()
    first, second = ask(inner, Y, x).x0, ask(inner, NOTHING, x).x0
    np.testing.assert_allclose(ask(ClassifierFree(inner, NULL, 3.0), Y, x).x0, second + 3 * (first - second), atol=1e-9)
    assert ask(ClassifierFree(inner, NULL, 3.0, (0.0, 0.5), 0.7), Y, x).x0.shape == x.shape
    kept = ask(AdaptiveProjected(inner, NULL, 3.0, eta=1.0), Y, x).x0
    np.testing.assert_allclose(kept, second + 3 * (first - second), atol=1e-9)


# --- the null condition


def test_the_null_condition_may_hold_some_keys_and_have_a_batch_axis() -> None:
    random = np.random.default_rng(1)
    tokens, low = random.normal(size=(B, 5, 2)), random.normal(size=(B, 4))
    condition = {"tokens": tokens.astype(np.float32), "low_res": low}
    for null in (np.full((5, 2), 0.25), random.normal(size=(B, 5, 2))):
        both = with_null(condition, {"tokens": null, "absent": np.zeros(1)})
        np.testing.assert_array_equal(both["low_res"], np.concatenate([low, low]))
        expected = np.concatenate([tokens, np.broadcast_to(null, tokens.shape)]).astype(np.float32)
        np.testing.assert_array_equal(both["tokens"], expected)
        assert both["tokens"].dtype == np.float32


@pytest.mark.parametrize("null", [{}, {"tokens": np.zeros(2)}, {"label": np.zeros(2)}])
def test_a_null_condition_that_is_not_one_of_the_condition_is_refused(null: Any) -> None:
    with pytest.raises(UserError) as caught:
        with_null(Y, null)
    assert caught.value.field == ("null.label" if "label" in null else "sample.guidance.scale")


# --- the interval


@pytest.mark.parametrize(
    ("name", "interval", "on"),
    [
        ("classifier_free", (0.4, 0.7), [False, True, False]),  # a batch of several times
        ("autoguidance", (0.3, 0.55), [True, True, False]),  # both ends belong to it
        ("classifier_free", (0.55, 0.8), [False, True, True]),
        ("autoguidance", (0.3, 0.8), [True, True, True]),
        ("autoguidance", (0.9, 1.0), [False, False, False]),
        ("classifier_free", (0.55, 0.55), [False, True, False]),
    ],
)
def test_guidance_acts_on_the_examples_whose_times_lie_in_the_interval(name: str, interval: Any, on: Any) -> None:
    inner = strong(DDPM(variance="learned_range"))
    everywhere, found, plain = ask(guided(name, inner, 3.0)), ask(guided(name, inner, 3.0, interval)), ask(inner)
    for part in range(2):
        expected = np.where(np.reshape(on, (B, 1, 1, 1)), everywhere[part], plain[part])
        np.testing.assert_allclose(found[part], expected, atol=1e-9)
    np.testing.assert_allclose(found.variance, plain.variance, atol=1e-12)
    assert np.min(np.max(np.abs(everywhere.x0 - plain.x0), axis=(1, 2, 3))) > 0.1


def test_both_ends_of_the_interval_belong_to_it_however_the_times_round() -> None:
    ends = np.arange(1, 1000) / 1000
    for end in ends:
        near = jnp.asarray([end * (1 - 1e-4), end, end * (1 + 1e-4)], jnp.float32)
        np.testing.assert_array_equal(is_inside(near, (end, end)), [False, True, False])


def test_an_open_end_includes_what_lies_beyond() -> None:
    """Such as the times above 1 that churn visits."""
    beyond = jnp.asarray([-0.1, 0.0, 0.2, 1.0, 1.1])
    np.testing.assert_array_equal(is_inside(beyond, (0.0, 0.2)), [True, True, True, False, False])
    np.testing.assert_array_equal(is_inside(beyond, (0.2, 1.0)), [False, False, True, True, True])
    assert np.all(is_inside(beyond, None))


def calls(wrap: Any, steps: int = 5) -> tuple[list[int], int]:
    """The batch size of each evaluation that sampling really makes, and how often the network is traced."""
    made: list[int] = []
    traced: list[int] = []

    def counted(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        traced.append(1)
        jax.debug.callback(lambda _: made.append(x.shape[0]), t[0])
        return 0.1 * x * expand(y, x)

    denoise, start = wrap(NetworkDenoiser(FLOW, exact.answers(counted))), jnp.ones((B, 2, 2, 1))
    keys, grid = jax.random.split(jax.random.key(0), B), exact.grid("uniform", FLOW, steps)
    run = jax.jit(lambda: sample(keys, denoise, Y, (2, 2, 1), grid=grid, solver=Euler(), start=start))
    run().block_until_ready()
    jax.effects_barrier()
    return made, len(traced)


def test_a_step_costs_one_pass_of_a_doubled_batch_and_outside_the_interval_of_the_batch() -> None:
    """Steps start at 1, 0.8, 0.6, 0.4 and 0.2."""
    part = (0.4, 0.8)
    assert calls(lambda inner: ClassifierFree(inner, NULL, 1.0, part)) == ([B] * 5, 1)
    assert calls(lambda inner: ClassifierFree(inner, NULL, 1.5)) == ([2 * B] * 5, 1)
    assert calls(lambda inner: ClassifierFree(inner, NULL, 0.0)) == ([2 * B] * 5, 1)
    assert calls(lambda inner: ClassifierFree(inner, NULL, 1.5, part)) == ([B, 2 * B, 2 * B, 2 * B, B], 2)
    assert calls(lambda inner: Autoguidance(inner, inner, 1.5, part)) == ([B] * (1 + 2 + 2 + 2 + 1), 3)
    assert calls(lambda inner: AdaptiveProjected(inner, NULL, 2.0)) == ([2 * B] * 5, 1)
    assert calls(lambda inner: AdaptiveProjected(inner, NULL, 1.0)) == ([B] * 5, 1)


# --- rescaling


@pytest.mark.parametrize(
    ("process", "interval", "rescale"),
    [
        *((process, None, 0.3) for process in PROCESSES.values()),
        *((PROCESSES[key], (0.2, 0.9), 1.0) for key in ("velocity", "learned_range")),
    ],
)
def test_rescaling_moves_the_deviation_of_each_answer_to_that_of_the_conditional(
    process: Process, rescale: float, interval: Any
) -> None:
    """Lin et al. 2023, Eq. 15 and 16, for whatever the network predicts."""
    inner = strong(process)
    conditional, plain = ask(inner), ask(ClassifierFree(inner, NULL, 5.0))
    found = ask(ClassifierFree(inner, NULL, 5.0, interval, rescale))
    triples = zip(*(answer(process, each) for each in (found, plain, conditional)), strict=True)
    for one, before, reference in triples:
        assert np.std(before) > 1.5 * np.std(reference)
        rescaled = before * np.std(reference) / np.std(before)
        np.testing.assert_allclose(one, rescale * rescaled + (1 - rescale) * before, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(process.noised(found.x0, found.eps, jnp.asarray(T)), X, atol=1e-8)
    if conditional.variance is not None:
        np.testing.assert_allclose(found.variance, conditional.variance, rtol=1e-12)


def test_autoguidance_is_rescaled_too() -> None:
    found = answer(FLOW, ask(Autoguidance(strong(), strong(FLOW, 0.5), 5.0, None, 1.0)))
    np.testing.assert_allclose(np.std(found, (1, 2, 3)), np.std(answer(FLOW, ask(strong())), (1, 2, 3)), rtol=1e-9)


def test_a_network_that_answers_zero_is_guided_to_zero() -> None:
    """Every DiT answers zero before its first step, and its contrast cannot be rescaled."""
    zero = NetworkDenoiser(FLOW, exact.answers(lambda x, t, y: jnp.zeros_like(x)))
    np.testing.assert_array_equal(answer(FLOW, ask(ClassifierFree(zero, NULL, 3.0, None, 0.7))), np.zeros_like(X))


# --- what it means


@pytest.mark.parametrize("process", exact.PROCESSES.values(), ids=exact.PROCESSES)
def test_the_guided_score_is_the_conditional_to_the_scale_over_the_unconditional(process: Process) -> None:
    """grad log [p(x | y)^s p(x)^(1 - s)] in closed form, whatever the network predicts."""
    one = oracles.network(process, oracles.Mixture(exact.DATA.means[:1], exact.STDS[:1], np.ones(1)))
    both = oracles.network(process, exact.DATA)

    def class_or_all(x: jax.Array, t: jax.Array, condition: Any, *, s: Any = None) -> Any:
        first, second = (network(x, t, condition)[0] for network in (one, both))
        return jnp.where(expand(condition["label"], x) == 0, first, second), {}

    scale, u, t = 2.5, np.random.default_rng(2).normal(size=(4, 2)), np.linspace(0.2, 0.9, 4)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    x = (alpha + sigma) * u
    denoise = ClassifierFree(NetworkDenoiser(process, class_or_all), {"label": np.int32(1)}, scale)
    found = ask(denoise, {"label": jnp.zeros(4, int)}, x.reshape(4, *exact.SHAPE), t)
    of_class = -(x - alpha * exact.MEANS[0]) / (alpha**2 * exact.STDS[0] ** 2 + sigma**2)
    of_all = -np.concatenate([exact.denoise(x[i : i + 1], alpha[i], sigma[i])[1] for i in range(4)]) / sigma
    np.testing.assert_allclose(-found.eps.reshape(4, 2) / sigma, scale * of_class + (1 - scale) * of_all, rtol=1e-7)


# --- adaptive projected guidance


def published(
    conditional: np.ndarray, difference: np.ndarray, scale: float, eta: float, norm_threshold: float | None
) -> np.ndarray:
    """Sadat et al. 2024, Algorithm 1 after the momentum, for one example."""
    if norm_threshold:
        difference = difference * min(1.0, norm_threshold / np.linalg.norm(difference))
    direction = conditional / np.linalg.norm(conditional)
    along = np.sum(difference * direction) * direction
    return conditional + (scale - 1) * (difference - along + eta * along)


@pytest.mark.parametrize(
    ("process", "eta", "norm_threshold"),
    [(FLOW, 0.0, None), (FLOW, 0.3, 2.0), (DDPM(variance="learned_range"), 0.3, 1e6), (EDM(), 1.0, 2.0)],
)
def test_projected_guidance_is_algorithm_1_of_sadat_et_al(
    process: Process, eta: float, norm_threshold: float | None
) -> None:
    inner = strong(process)
    found = ask(AdaptiveProjected(inner, NULL, 4.0, eta, norm_threshold))
    conditional, unconditional = ask(inner), ask(inner, NOTHING).x0
    for one, c, u in zip(found.x0, conditional.x0, unconditional, strict=True):
        np.testing.assert_allclose(one, published(c, c - u, 4.0, eta, norm_threshold), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(process.noised(found.x0, found.eps, jnp.asarray(T)), X, atol=1e-9)
    if found.variance is not None:
        np.testing.assert_array_equal(found.variance, conditional.variance)


@pytest.mark.parametrize("process", [FLOW, DDPM(), EDM()])
def test_projected_guidance_that_keeps_everything_is_classifier_free_guidance(process: Process) -> None:
    kept, free = (ask(kind(strong(process), NULL, 4.0)) for kind in (_kept, ClassifierFree))
    for one, other in zip(kept[:2], free[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def _kept(inner: Denoiser, null: Any, scale: float) -> AdaptiveProjected:
    return AdaptiveProjected(inner, null, scale, eta=1.0)


@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_projected_guidance_moves_across_the_image_and_no_farther_than_it_may(scale: float) -> None:
    conditional = ask(strong()).x0
    update = ask(AdaptiveProjected(strong(), NULL, scale, norm_threshold=0.5)).x0 - conditional
    lengths = np.sqrt(np.sum(update**2, axis=(1, 2, 3)))
    products = np.sum(update * conditional, axis=(1, 2, 3)) / np.sqrt(np.sum(conditional**2, axis=(1, 2, 3)))
    assert np.all(np.abs(products) < 1e-9 * lengths + 1e-12)
    assert np.all(lengths <= abs(scale - 1) * 0.5 * (1 + 1e-5)) and np.all(lengths > 0.1)


MOMENTUM = 0.7


class Mirror:
    """Projected guidance with momentum in numpy, for x (B, H, W, C) under rectified flow."""

    def __init__(self, like: np.ndarray) -> None:
        self.running = np.zeros_like(like)

    def velocity(self, x: np.ndarray, t: float) -> np.ndarray:
        c, u = (x - t * np.sin(x * y[:, None, None, None] + 10 * t) for y in (Y["label"], NOTHING["label"]))
        self.running = c - u + MOMENTUM * self.running
        x0 = np.stack([published(one, d, 3.0, 0.2, 4.0) for one, d in zip(c, self.running, strict=True)])
        return (x - x0) / t


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("solver", [Euler(), Heun()])
def test_momentum_runs_through_all_evaluations_of_a_sampler(solver: Any, wrapped: bool) -> None:
    """One recursion over steps and corrections that starts from zero, also inside a wrapper."""
    x, mirror, grid = X[::-1], Mirror(X), exact.grid("uniform", FLOW, 4)
    for t, t_next in grid:
        v = mirror.velocity(x, t)
        guess = x + (t_next - t) * v
        if isinstance(solver, Heun) and t_next > 0:
            guess = x + (t_next - t) * (v + mirror.velocity(guess, t_next)) / 2
        x = guess
    denoise: Denoiser = AdaptiveProjected(strong(), NULL, 3.0, 0.2, 4.0, MOMENTUM)
    denoise = denoisers.StaticClip(denoise, limit=1e9) if wrapped else denoise
    found = jnp.asarray(X[::-1])
    with jax.disable_jit():
        state = solver.init(denoise, grid, found)
        for t, t_next in grid:
            found, state = solver.step(0 * found, denoise, found, jnp.asarray(t), jnp.asarray(t_next), Y, state)
    np.testing.assert_allclose(found, x, rtol=1e-8, atol=1e-8)


def test_guidance_keeps_state_only_with_momentum_and_not_in_an_interval() -> None:
    for momentum, leaves in ((0.0, 0), (0.5, 1)):
        projected = AdaptiveProjected(strong(), NULL, 2.0, momentum=momentum)
        assert len(jax.tree.leaves(projected.init(X))) == leaves
        outer = Autoguidance(projected, projected, 2.0)
        assert len(jax.tree.leaves(outer.init(X))) == 2 * leaves
        assert ask(outer).x0.shape == X.shape
    with pytest.raises(UserError) as caught:
        Autoguidance(projected, projected, 2.0, (0.2, 0.8)).init(X)
    assert caught.value.field == "sample.guidance.interval"
