"""Laws of choices: what fits is made into the parts it names, and what does not is named with what would."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax import registry
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import choice, denoisers, grids, guidance, solvers
from archirf_jax.samplers.choice import Choice
from archirf_jax.samplers.solvers.ddim import Ddim
from archirf_jax.samplers.solvers.edm import Edm
from archirf_jax.samplers.solvers.euler_maruyama import EulerMaruyama

FLOW, DENOISING, NOISING = RectifiedFlow(), DDPM(), EDM()
NULL = np.int32(0)
X: Any = np.random.default_rng(0).normal(size=(2, 2, 2, 1)).astype(np.float32)
T: Any = np.asarray([0.3, 0.55], np.float32)
Y: Any = np.asarray([1, 2], np.int32)


def network(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
    return jnp.sin(x * (1 + y[:, None, None, None]))


def weak(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
    return 0.5 * network(x, t, y)


# --- solvers


def test_every_solver_can_be_chosen_with_every_option_it_has() -> None:
    for name in set(registry.names(solvers)) - {"dopri5"}:
        assert type(Choice(solver=name).make_solver()).__module__.endswith(f".{name}")
    assert Choice(solver="ddim").make_solver() == Ddim(eta=0.0)
    assert Choice(solver="euler_maruyama").make_solver() == EulerMaruyama(eta=1.0)
    assert Choice(solver="ddim", eta=0.3).make_solver() == Ddim(eta=0.3)
    assert Choice(solver="euler_maruyama", eta=0.0).make_solver() == EulerMaruyama(eta=0.0)
    assert Choice(solver="edm", churn=20.0).make_solver() == Edm(churn=20.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"solver": "eular"}, "config.sample.solver: 'eular' is not one of .*did you mean 'euler'"),
        ({"solver": "eular", "eta": 0.5}, "config.sample.solver: 'eular' is not one of .*did you mean 'euler'"),
        ({"solver": "euler", "eta": 0.5}, "eta: euler adds no such noise; only ddim and euler_maruyama take eta"),
        ({"solver": "edm", "eta": 0.0}, "eta: edm adds no such noise; only ddim and euler_maruyama take eta"),
        ({"solver": "ddim", "churn": 2.0}, "churn: ddim adds no such noise; only edm take churn"),
        ({"solver": "ddim", "eta": 1.5}, r"eta: 1.5 must lie in \[0, 1\] for ddim"),
    ],
)
def test_an_option_that_a_solver_has_not_is_named_with_the_solvers_that_have_it(fields: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Choice(**fields).make_solver()
    assert "\n" not in str(caught.value)


def test_the_options_belong_to_the_solvers_that_take_them() -> None:
    """The table of options agrees with the fields of the solvers."""
    for name in set(registry.names(solvers)) - {"dopri5"}:
        fields = type(Choice(solver=name).make_solver()).__dataclass_fields__
        for option, takers in choice.OPTIONS.items():
            assert (option in fields) == (name in takers)


def test_a_solver_whose_package_is_missing_says_how_to_get_it_and_is_in_nobody_elses_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "diffrax", None)
    monkeypatch.delitem(sys.modules, "archirf_jax.samplers.solvers.dopri5", raising=False)
    assert {"dopri5", "euler"} <= set(registry.names(solvers))
    message = "config.sample.solver: dopri5 needs the package diffrax, which is not installed; "
    with pytest.raises(UserError) as caught:
        Choice(solver="dopri5").make_solver()
    assert str(caught.value) == message + "pip install -r requirements-diffrax.txt"
    with pytest.raises(UserError, match="eta: euler adds no such noise"):
        Choice(solver="euler", eta=0.5).make_solver()


# --- grids


def test_the_grid_is_the_named_one_from_the_strength_on() -> None:
    np.testing.assert_array_equal(Choice(steps=7).make_grid(FLOW), grids.make("uniform", FLOW, 7))
    np.testing.assert_array_equal(
        Choice(grid="shifted", shift=3.0, steps=5).make_grid(FLOW), grids.make("shifted", FLOW, 5, 3.0)
    )
    np.testing.assert_array_equal(Choice(grid="trailing").make_grid(DENOISING), grids.make("trailing", DENOISING, 50))
    np.testing.assert_array_equal(Choice(steps=10, strength=0.6).make_grid(FLOW), grids.make("uniform", FLOW, 10)[4:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps: 0"),
        ({"grid": "trailing"}, "grid: 'trailing' counts the integer steps of ddpm"),
        ({"grid": "unifrom"}, "grid: 'unifrom' .*did you mean 'uniform'"),
        ({"shift": 3.0}, "shift: 3.0 belongs to the grid 'shifted'"),
        ({"strength": 0.01}, "strength: 0.01 is below the last step of the grid, at 0.02"),
    ],
)
def test_a_grid_that_does_not_fit_is_named(fields: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Choice(**fields).make_grid(FLOW)


# --- denoisers


def ask(denoise: denoisers.Denoiser) -> Any:
    return denoise(jnp.asarray(X), jnp.asarray(T), Y, denoise.init(jnp.asarray(X)))[0]


@pytest.mark.parametrize("name", ["classifier_free", "adaptive_projected", "autoguidance"])
def test_scale_one_is_the_network_itself(name: str) -> None:
    made = Choice(guidance=name).make_denoiser(FLOW, network, NULL, weak)
    assert made == denoisers.Network(FLOW, network)


def test_guidance_is_the_named_one_with_the_fields_it_is_given() -> None:
    """The time 0.55 lies in the interval, 0.3 does not; a rounding's width more of it does not matter."""
    options: Any = {"guidance_scale": 3.0, "guidance_interval": (0.5, 0.6), "guidance_rescale": 0.7}
    told = (499.0, 599.0)
    for name, expected in (
        ("classifier_free", guidance.classifier_free(network, NULL, 3.0, told, 0.7)),
        ("autoguidance", guidance.autoguidance(network, weak, 3.0, told, 0.7)),
    ):
        made = Choice(guidance=name, **options).make_denoiser(DENOISING, network, NULL, weak)
        np.testing.assert_allclose(ask(made).x0, ask(denoisers.Network(DENOISING, expected)).x0, atol=1e-6)
    fields = {"scale": 3.0, "parallel": 0.2, "longest": 0.9, "momentum": 0.5}
    projected = Choice(guidance="adaptive_projected", **{f"guidance_{name}": value for name, value in fields.items()})
    assert projected.make_denoiser(DENOISING, network, NULL) == denoisers.AdaptiveProjectedGuidance(
        DENOISING, network, NULL, **fields
    )


@pytest.fixture
def interval(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The network times between which guidance would act for a process and a pair of times."""
    seen = []

    def watch(model_fn: Any, null: Any, scale: float, interval: Any, rescale: float) -> Any:
        seen.append(interval)
        return model_fn

    def found(process: Process, first: float, second: float) -> tuple[float, float]:
        Choice(guidance_scale=2.0, guidance_interval=(first, second)).make_denoiser(process, network, NULL)
        return seen[-1]

    monkeypatch.setattr(guidance, "classifier_free", watch)
    return found


@pytest.mark.parametrize("process", [FLOW, RectifiedFlow(time_scale=1.0), DENOISING, NOISING])
def test_both_ends_of_the_interval_belong_to_it_however_their_times_round(process: Process, interval: Any) -> None:
    """The sampler's times are float32, and each process tells the network something else of them."""
    ends = np.arange(1, 1000) / 1000
    told, beside = (np.asarray(jax.jit(process.network_time)(jnp.asarray(t, jnp.float32))) for t in (ends, ends + 1e-4))
    for i, end in enumerate(ends):
        low, high = np.float32(interval(process, end, end))
        assert low <= told[i] <= high < beside[i]


def test_an_interval_without_an_end_on_one_side_includes_what_lies_beyond(interval: Any) -> None:
    """Such as the times above 1 that churn visits; and without any end it is none."""
    assert interval(NOISING, 0.0, 1.0) == guidance.ALWAYS
    assert interval(NOISING, 0.2, 1.0)[1] == guidance.ALWAYS[1] and np.isfinite(interval(NOISING, 0.2, 1.0)[0])
    assert interval(NOISING, 0.0, 0.2)[0] == guidance.ALWAYS[0] and np.isfinite(interval(NOISING, 0.0, 0.2)[1])


def test_thresholds_wrap_the_guided_network() -> None:
    inner = denoisers.Network(FLOW, network)
    assert Choice(threshold="static").make_denoiser(FLOW, network, NULL) == denoisers.StaticClip(inner)
    assert Choice(threshold="dynamic").make_denoiser(FLOW, network, NULL) == denoisers.DynamicThreshold(inner)
    fields: Any = {"guidance": "adaptive_projected", "guidance_scale": 2.0}
    guided = denoisers.AdaptiveProjectedGuidance(FLOW, network, NULL, 2.0)
    assert Choice(threshold="static", **fields).make_denoiser(FLOW, network, NULL) == denoisers.StaticClip(guided)


def test_autoguidance_without_a_weaker_network_is_refused() -> None:
    with pytest.raises(UserError, match="guidance: autoguidance needs a weaker network; .*--weak_workdir"):
        Choice(guidance="autoguidance", guidance_scale=2.0).make_denoiser(FLOW, network, NULL)


# --- values that do not fit

NAN, INF = float("nan"), float("inf")
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"guidance": "classifier-free"}, "guidance: 'classifier-free' is not one of .*did you mean 'classifier_free'"),
    ({"threshold": "dynamik"}, "threshold: 'dynamik' is not one of none, static, dynamic .*'dynamic'"),
    *[
        ({name: value}, f"{name}: {value} must be a finite number from 0")
        for name in ("guidance_scale", "guidance_rescale", "guidance_longest", "churn")
        for value in (-0.1, NAN, INF)
    ],
    *[
        ({name: value}, f"{name}: {value} must be a finite number")
        for name in ("guidance_parallel", "guidance_momentum", "eta")
        for value in (NAN, INF)
    ],
    ({"guidance_rescale": 1.1}, "guidance_rescale: 1.1 must be a finite number from 0 to 1"),
    *[
        ({"guidance_interval": pair}, "guidance_interval: .* two times with 0 <= first <= second <= 1")
        for pair in ((0.5, 0.4), (-0.1, 0.5), (0.5, 1.1), (NAN, 0.5), (0.1, NAN))
    ],
    *[({"strength": value}, f"strength: {value} must be above 0 and at most 1") for value in (0.0, -0.1, 1.1, NAN)],
    (
        {"guidance": "adaptive_projected", "guidance_rescale": 0.5},
        "guidance_rescale: belongs to classifier_free and autoguidance, not to adaptive_projected",
    ),
    (
        {"guidance": "adaptive_projected", "guidance_interval": (0.1, 0.9)},
        "guidance_interval: belongs to classifier_free and autoguidance, not to adaptive_projected",
    ),
    *[
        ({name: 0.5}, f"{name}: belongs to adaptive_projected, not to classifier_free")
        for name in ("guidance_parallel", "guidance_longest", "guidance_momentum")
    ],
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_a_value_that_does_not_fit_is_named_with_what_would(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Choice(**fields)
    assert "\n" not in str(caught.value)
