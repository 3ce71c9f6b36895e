"""Sampler configurations: what is named is made with its fields, and what does not fit is refused by its field."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from archirf_jax import registry
from archirf_jax.errors import UserError
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import denoisers, grids, guidance, solvers
from archirf_jax.samplers.config import CHOICES, SHORT, SamplerConfig
from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.guidance.adaptive_projected import AdaptiveProjected
from archirf_jax.samplers.guidance.autoguidance import Autoguidance
from archirf_jax.samplers.guidance.classifier_free import ClassifierFree
from archirf_jax.samplers.solvers.ddim import Ddim
from archirf_jax.samplers.solvers.ddpm import Ddpm
from archirf_jax.samplers.solvers.edm import Edm
from archirf_jax.samplers.solvers.euler_maruyama import EulerMaruyama
from tests.samplers import exact

FLOW, DENOISING = RectifiedFlow(), DDPM()
NULL = {"label": np.int32(0)}
INNER, WEAK = (NetworkDenoiser(FLOW, exact.answers(lambda x, t, y, a=a: a * x)) for a in (1.0, 0.5))
DEFAULT = SamplerConfig()
# Every option of every choice, at a value other than its default.
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "solver": {
        "euler": {},
        "ddim": {"eta": 0.3},
        "ddpm": {},
        "dpmpp_2m": {},
        "heun": {},
        "midpoint": {},
        "euler_maruyama": {"eta": 0.5},
        "edm": {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003},
        "dopri5": {"rtol": 1e-3, "atol": 1e-2, "last": 0.01, "max_steps": 64},
    },
    "grid": {
        **{name: {} for name in ("uniform", "archirf")},
        "linspace": {"skipped": 1},
        "trailing": {"ends_at_data": False},
        "leading": {"offset": 1, "skipped": 1, "ends_at_data": False},
        "shifted": {"shift": 3.0, "sigmas": (0.9, 0.5), "last": 0.1},
        "dynamic_shift": {
            **{"image_seq_len": 1024, "base_shift": 0.4, "max_shift": 1.2, "sigmas": (0.9, 0.5)},
            **{"base_image_seq_len": 128, "max_image_seq_len": 8192, "last": 0.1},
        },
        "karras": {"rho": 5.0, "sigma_min": 0.01, "sigma_max": 50.0},
        "respaced": {"spacing": "25"},
    },
    "guidance": {
        "classifier_free": {"scale": 2.0, "interval": (0.2, 0.8), "rescale": 0.7},
        "autoguidance": {"scale": 2.0, "interval": (0.2, 0.8), "rescale": 0.7},
        "adaptive_projected": {"scale": 2.0, "eta": 0.2, "norm_threshold": 5.0, "momentum": -0.5},
    },
}
ROOMS = {"solver": solvers, "grid": grids, "guidance": guidance}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in OPTIONS for name in OPTIONS[kind]])
def test_every_option_of_every_choice_is_reached_by_a_configuration_and_by_dotted_names(kind: str, name: str) -> None:
    if name == "dopri5":
        pytest.importorskip("diffrax")
    fields = OPTIONS[kind][name]
    read = SamplerConfig.from_config({kind: {"name": name, **fields}})
    assert read == DEFAULT.replace(**{kind: name} | {f"{kind}.{field}": value for field, value in fields.items()})
    assert SamplerConfig.from_config(read.to_dict()) == read and hash(read) == hash(read.replace())
    made = {
        "solver": read.make_solver,
        "grid": lambda: read._grid,
        "guidance": lambda: read.replace(threshold=None).make_denoiser(INNER, NULL, WEAK),
    }[kind]()
    assert type(made).__module__.endswith(f".{name}")
    assert {field: getattr(made, field) for field in fields} == fields
    others = set(type(made).__dataclass_fields__) - {"inner", "null", "weak", "log_p", "classifier_scale"}
    assert others == set(fields), "the table above has every field"


def test_every_choice_is_in_the_table() -> None:
    assert {kind: set(registry.names(room)) for kind, room in ROOMS.items()} == {k: set(v) for k, v in OPTIONS.items()}
    assert {name.partition(".")[0] for name in SHORT.values()} == set(CHOICES)


def test_short_names_are_those_of_the_command_line() -> None:
    made = DEFAULT.replace(
        solver="edm", steps=20, grid="shifted", shift=3.0, churn=40.0, guidance_scale=2.0, guidance_interval=[0.2, 0.8]
    )
    assert made.make_solver() == Edm(churn=40.0)
    assert made.make_denoiser(INNER, NULL) == ClassifierFree(INNER, NULL, 2.0, (0.2, 0.8))
    np.testing.assert_array_equal(made.make_grid(FLOW), exact.grid("shifted", FLOW, 20, shift=3.0))
    assert DEFAULT.replace(solver="ddim", eta=0.3).make_solver() == Ddim(eta=0.3)
    assert DEFAULT.replace(guidance_scale=3.0, guidance_rescale=0.7).make_denoiser(INNER, NULL).rescale == 0.7  # type: ignore[attr-defined]
    apg = DEFAULT.replace(
        guidance="adaptive_projected", guidance_scale=2.0, apg_eta=0.1, apg_norm_threshold=4.0, apg_momentum=-0.5
    )
    assert apg.make_denoiser(INNER, NULL) == AdaptiveProjected(INNER, NULL, 2.0, 0.1, 4.0, -0.5)


def test_another_choice_by_name_drops_the_options_of_the_old_one_but_not_the_scale() -> None:
    edm = DEFAULT.replace(solver="edm", churn=40.0, grid="shifted", shift=3.0)
    assert edm.replace(steps=5).make_solver() == edm.replace(solver="edm").make_solver() == Edm(churn=40.0)
    assert edm.replace(solver="euler_maruyama").make_solver() == EulerMaruyama()
    assert edm.replace(grid="uniform") == edm.replace(**{"grid.name": "uniform"})
    guided = DEFAULT.replace(guidance_scale=3.0, guidance_interval=(0.1, 0.9), guidance_rescale=0.7)
    other = guided.replace(guidance="adaptive_projected", apg_eta=0.5)
    assert other.make_denoiser(INNER, NULL) == AdaptiveProjected(INNER, NULL, 3.0, eta=0.5)
    assert guided.replace(guidance_interval=None).make_denoiser(INNER, NULL) == ClassifierFree(
        INNER, NULL, 3.0, None, 0.7
    )


# --- grids


def test_the_grid_starts_at_the_strength() -> None:
    whole = DEFAULT.replace(steps=10)
    np.testing.assert_array_equal(whole.replace(strength=0.6).make_grid(FLOW), whole.make_grid(FLOW)[4:])
    between = whole.replace(strength=0.65).make_grid(FLOW)
    np.testing.assert_allclose(between[:2], [[0.65, 0.6], [0.6, 0.5]])
    assert len(between) == 7
    leading = DEFAULT.replace(grid="leading", steps=4)
    np.testing.assert_array_equal(leading.replace(strength=0.9).make_grid(DENOISING), leading.make_grid(DENOISING))


@pytest.mark.parametrize(("spacing", "steps"), [("250", 250), ("10,20,30", 60), ("ddim50", 50)])
def test_a_respacing_has_its_own_number_of_steps(spacing: str, steps: int) -> None:
    named = SamplerConfig.from_config({"grid": spacing})
    assert named == DEFAULT.replace(grid=spacing) == DEFAULT.replace(grid=spacing, steps=steps)
    assert named.steps == len(named.make_grid(DENOISING)) == steps
    assert named.replace(solver="ddpm").steps == steps and named.replace(grid="trailing", steps=7).steps == 7


@pytest.mark.parametrize("fields", [{"grid": "shifted"}, {"grid": "dynamic_shift", "grid.image_seq_len": 64}])
def test_there_are_as_many_steps_as_sigmas(fields: dict[str, Any]) -> None:
    given = DEFAULT.replace(**fields, **{"grid.sigmas": [0.9, 0.5, 0.2]})
    assert given.steps == 3 == len(given.make_grid(FLOW)) == given.replace(steps=3, solver="heun").steps
    assert given.replace(**{"grid.sigmas": (1.0, 0.5)}).steps == 2
    assert DEFAULT.replace(**fields, steps=7).replace(steps=9).steps == 9
    for refused in ({"steps": 4}, {"grid.sigmas": (0.9, 0.5), "steps": 3}):
        with pytest.raises(UserError) as caught:
            given.replace(**refused)
        assert caught.value.field == "sample.steps"


def test_steps_without_a_grid_make_a_respacing_of_so_many() -> None:
    for spacing, expected in (("250", "50"), ("ddim50", "ddim25")):
        steps = int(expected.removeprefix("ddim"))
        assert DEFAULT.replace(grid=spacing).replace(steps=steps) == DEFAULT.replace(grid=expected)


# --- denoisers


@pytest.mark.parametrize("name", OPTIONS["guidance"])
def test_scale_one_is_the_inner_denoiser_itself(name: str) -> None:
    made = DEFAULT.replace(guidance=name)
    assert made.make_denoiser(INNER, NULL) is INNER
    assert not made.asks_null and not made.asks_weak


def test_a_configuration_says_what_it_asks_beside_the_network() -> None:
    asked = {name: DEFAULT.replace(guidance=name, guidance_scale=2.0) for name in OPTIONS["guidance"]}
    assert {name for name, made in asked.items() if made.asks_null} == {"classifier_free", "adaptive_projected"}
    assert {name for name, made in asked.items() if made.asks_weak} == {"autoguidance"}
    assert asked["autoguidance"].make_denoiser(INNER, NULL, WEAK) == Autoguidance(INNER, WEAK, 2.0)


def test_thresholds_and_classifiers_wrap_the_guided_denoiser() -> None:
    guided = ClassifierFree(INNER, NULL, 2.0)
    for name, wrap in (("static", denoisers.StaticClip), ("dynamic", denoisers.DynamicThreshold)):
        assert DEFAULT.replace(threshold=name, guidance_scale=2.0).make_denoiser(INNER, NULL) == wrap(guided)

    def log_p(x: Any, t: Any, condition: Any) -> Any:
        return x

    made = DEFAULT.replace(threshold="static", classifier_scale=3.0)
    by_classifier = denoisers.ClassifierGuidance(INNER, log_p, 3.0)
    assert made.make_denoiser(INNER, NULL, log_p=log_p) == denoisers.StaticClip(by_classifier)
    ancestral = made.replace(solver="ddpm")
    assert ancestral.make_denoiser(INNER, NULL, log_p=log_p) == denoisers.StaticClip(INNER)
    assert ancestral.make_solver(log_p) == Ddpm(log_p, 3.0)


# --- what does not fit

NAN, INF = float("nan"), float("inf")
APG: dict[str, Any] = {"guidance": "adaptive_projected"}
TOKENS: dict[str, Any] = {"grid": "dynamic_shift", "grid.image_seq_len": 64}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"solver": "eular"}, "solver.name"),
    ({"solver": "eular", "eta": 0.5}, "solver.name"),
    ({"grid": "karas"}, "grid.name"),
    ({"guidance": "classifier-free"}, "guidance.name"),
    ({"threshold": "dynamik"}, "threshold"),
    ({"threshold": "none"}, "threshold"),
    ({"chrun": 1.0}, "chrun"),
    ({"model.depth": 1}, "model.depth"),
    *[
        ({"solver": name, "eta": 0.5}, "solver.eta")
        for name in ("euler", "heun", "midpoint", "dpmpp_2m", "edm", "ddpm")
    ],
    *[({"solver": name, "churn": 0.5}, "solver.churn") for name in ("euler", "ddim", "dpmpp_2m", "euler_maruyama")],
    *[({"solver": "ddim", "eta": value}, "solver.eta") for value in (-0.1, 1.1, NAN)],
    *[({"solver": "euler_maruyama", "eta": value}, "solver.eta") for value in (-1.0, INF)],
    *[({"solver": "edm", "churn": value}, "solver.churn") for value in (-0.1, NAN, INF, "much")],
    ({"solver": "edm", "solver.churn_min": 2.0, "solver.churn_max": 1.0}, "solver.churn_max"),
    ({"solver": "ddpm", "solver.log_p": 1.0}, "solver.log_p"),
    *[({"guidance_scale": value}, "guidance.scale") for value in (-0.1, NAN, INF)],
    *[({"guidance_rescale": value}, "guidance.rescale") for value in (-0.1, 1.1, NAN)],
    *[
        ({"guidance_interval": pair}, "guidance.interval")
        for pair in ((0.5, 0.4), (-0.1, 0.5), (0.5, 1.1), (NAN, 0.5), (0.1, NAN), (0.5,), "0.1,0.5")
    ],
    (APG | {"guidance_rescale": 0.5}, "guidance.rescale"),
    (APG | {"guidance_interval": (0.1, 0.9)}, "guidance.interval"),
    *[(APG | {"apg_norm_threshold": value}, "guidance.norm_threshold") for value in (0.0, -1.0, NAN)],
    *[(APG | {name: NAN}, f"guidance.{name.removeprefix('apg_')}") for name in ("apg_eta", "apg_momentum")],
    *[({name: 0.5}, f"guidance.{name.removeprefix('apg_')}") for name in ("apg_eta", "apg_norm_threshold")],
    ({"guidance.inner": None, "guidance.null": 1}, "guidance.null"),
    *[({"strength": value}, "strength") for value in (0.0, -0.1, 1.1, NAN)],
    *[({"hoist": value}, "hoist") for value in (None, 1, "no")],
    *[({"classifier_scale": value}, "classifier_scale") for value in (-0.1, NAN)],
    *[({"steps": value}, "steps") for value in (0, -1, 2.5, True)],
    *[({"grid": "shifted", "shift": value}, "grid.shift") for value in (0.0, -1.0, INF, NAN)],
    ({"shift": 3.0}, "grid.shift"),
    *[
        ({"grid": "shifted", "grid.sigmas": value}, "grid.sigmas")
        for value in ((), (1.1, 0.5), (0.5, 0.5), (0.2, 0.5), (0.5, 0.0), (NAN, 0.5), (0.9, NAN), 0.5, ("a",))
    ],
    *[
        (fields | {"grid.last": value}, "grid.last")
        for fields in (TOKENS, {"grid": "shifted"})
        for value in (0.0, 1.1, NAN)
    ],
    ({"grid": "dynamic_shift"}, "grid.image_seq_len"),
    *[(TOKENS | {"grid.image_seq_len": value}, "grid.image_seq_len") for value in (0, -1, 2.5, 10**9)],
    *[(TOKENS | {f"grid.{name}": NAN}, f"grid.{name}") for name in ("base_shift", "max_shift")],
    *[(TOKENS | {f"grid.{name}": 0}, f"grid.{name}") for name in ("base_image_seq_len", "max_image_seq_len")],
    (TOKENS | {"grid.max_image_seq_len": 256}, "grid.max_image_seq_len"),
    (TOKENS | {"grid.sigmas": (0.2, 0.5)}, "grid.sigmas"),
    (TOKENS | {"shift": 3.0}, "grid.shift"),
    ({"grid": "karras", "grid.rho": 0.0}, "grid.rho"),
    ({"grid": "12x"}, "grid.name"),
    ({"grid": "1,,2"}, "grid.spacing"),
    ({"grid": "0"}, "grid.spacing"),
    ({"grid": "250", "steps": 50}, "steps"),
]


@pytest.mark.parametrize(("fields", "field"), WRONG)
def test_what_does_not_fit_is_refused_by_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        DEFAULT.replace(**fields)
    assert caught.value.field == f"sample.{field}" and "\n" not in str(caught.value)


def test_steps_that_a_respacing_cannot_have_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        DEFAULT.replace(grid="10,20,30").replace(steps=50)
    assert caught.value.field == "sample.steps"
    with pytest.raises(UserError) as caught:
        SamplerConfig.from_config({"grid": "250", "steps": 20})
    assert caught.value.field == "sample.steps"


def test_autoguidance_without_a_weaker_network_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        DEFAULT.replace(guidance="autoguidance", guidance_scale=2.0).make_denoiser(INNER, NULL)
    assert caught.value.field == "sample.guidance.name"


GRIDS: list[tuple[dict[str, Any], Any, str]] = [
    *[({"grid": name}, process, "grid.name") for name in ("trailing", "leading", "250") for process in (FLOW, EDM())],
    *[({"grid": g, "steps": 1001}, DENOISING, "steps") for g in ("linspace", "trailing", "leading", "archirf")],
    *[({"grid": "archirf", "steps": 1}, process, "steps") for process in (FLOW, DENOISING)],
    *[
        ({"grid": "archirf"}, process, "grid.name")
        for process in (EDM(), RectifiedFlow(path="vp"), RectifiedFlow(prediction="x0"))
    ],
    ({"grid": "2000"}, DENOISING, "grid.spacing"),
    ({"grid": "ddim300"}, DENOISING, "grid.spacing"),
    ({"grid": "karras", "grid.sigma_min": 90.0}, FLOW, "grid.sigma_min"),
    ({"strength": 0.01}, FLOW, "strength"),
]


@pytest.mark.parametrize(("fields", "process", "field"), GRIDS)
def test_a_grid_that_a_process_does_not_have_is_refused(fields: dict[str, Any], process: Any, field: str) -> None:
    with pytest.raises(UserError) as caught:
        DEFAULT.replace(**fields).make_grid(process)
    assert caught.value.field == f"sample.{field}" and "\n" not in str(caught.value)


def test_a_solver_whose_package_is_missing_is_refused_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffrax", None)
    monkeypatch.delitem(sys.modules, "archirf_jax.samplers.solvers.dopri5", raising=False)
    with pytest.raises(UserError) as caught:
        DEFAULT.replace(solver="dopri5")
    assert caught.value.field == "sample.solver.name" and "requirements-diffrax.txt" in str(caught.value)
    assert DEFAULT.replace(solver="heun").solver.name == "heun"
