"""Trajectories: samplers written here in plain numpy agree, changed cases do not, and what is not supported is named.

The numpy samplers count in integer timesteps and products of betas, as the papers' tables do (Ho et al. 2020; Song et
al. 2020; Lu et al. 2022, "DPM-Solver++", Algorithm 2; Esser et al. 2024, Eq. 23). They share no line with the package.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.golden import schedulers
from tests.golden.case import Case, UnsupportedSource
from tests.golden.cases import compare, load, relative_error

HERE = pathlib.Path(__file__).parent
Arrays = dict[str, np.ndarray]
Config = dict[str, Any]
CLASSES = {"ddim": "DDIM", "ddpm": "DDPM", "dpmpp": "DPMSolverMultistep", "flow": "FlowMatchEulerDiscrete"}
CLASSES["ancestral"] = "EulerAncestralDiscrete"


def network(x: np.ndarray, t: float) -> np.ndarray:
    a = t / 1000
    return 0.6 * np.tanh(x) * math.cos(a) + 0.3 * np.sin(2 * x + a) + 0.1 * a


def abars(c: Config) -> list[float]:
    """The products of 1 - beta, timestep by timestep."""
    total, low, high = c["num_train_timesteps"], c["beta_start"], c["beta_end"]
    products = [1.0]
    for k in range(total):
        share = k / (total - 1)
        if c["beta_schedule"] == "linear":
            beta = low + share * (high - low)
        elif c["beta_schedule"] == "scaled_linear":
            beta = (math.sqrt(low) + share * (math.sqrt(high) - math.sqrt(low))) ** 2
        else:
            angles = [((k + i) / total + 0.008) / 1.008 * math.pi / 2 for i in (0, 1)]
            beta = min(1 - (math.cos(angles[1]) / math.cos(angles[0])) ** 2, 0.999)
        products.append(products[-1] * (1 - beta))
    if not c["rescale_betas_zero_snr"]:
        return products[1:]
    roots = [math.sqrt(abar) for abar in products[1:]]
    return [((root - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for root in roots]


def timesteps(c: Config, n: int) -> list[int]:
    total = c["num_train_timesteps"]
    if c["timestep_spacing"] == "leading":
        return [i * (total // n) + c["steps_offset"] for i in reversed(range(n))]
    if c["timestep_spacing"] == "linspace":
        return [round(i * (total - 1) / (n - 1)) for i in reversed(range(n))]
    return [round(place) - 1 for place in np.arange(total, 0, -total / n).tolist()]  # 48 rounds halves by this order


def ends(c: Config, x: np.ndarray, t: int, abar: float) -> tuple[np.ndarray, np.ndarray]:
    """Image, cut where the settings say so, and noise as predicted."""
    alpha, sigma, said = math.sqrt(abar), math.sqrt(1 - abar), network(x, t)
    x0, eps = {
        "epsilon": lambda: ((x - sigma * said) / alpha, said),
        "sample": lambda: (said, (x - alpha * said) / sigma),
        "v_prediction": lambda: (alpha * x - sigma * said, alpha * said + sigma * x),
    }[c["prediction_type"]]()
    if c.get("thresholding"):
        rows = np.sort(np.abs(x0.reshape(len(x0), -1)), axis=1)
        place = c["dynamic_thresholding_ratio"] * (rows.shape[1] - 1)
        below, rest = int(place), place % 1
        size = (1 - rest) * rows[:, below] + rest * rows[:, min(below + 1, rows.shape[1] - 1)]
        s = np.minimum(np.maximum(size, 1), c["sample_max_value"]).reshape(-1, *[1] * (x.ndim - 1))
        return np.maximum(np.minimum(x0, s), -s) / s, eps
    if c.get("clip_sample"):
        x0 = np.maximum(np.minimum(x0, c["clip_sample_range"]), -c["clip_sample_range"])
    return x0, eps


def ddim(c: Config, n: int, x: np.ndarray, noise: np.ndarray, eta: float) -> Arrays:
    table, visited, states = abars(c), timesteps(c, n), []
    for z, t in zip(noise, visited, strict=True):
        s = t - c["num_train_timesteps"] // n
        abar, before = table[t], table[s] if s >= 0 else 1.0 if c["set_alpha_to_one"] else table[0]
        x0, eps = ends(c, x, t, abar)
        variance = eta**2 * (1 - before) / (1 - abar) * (1 - abar / before)
        x = math.sqrt(before) * x0 + math.sqrt(1 - before - variance) * eps + math.sqrt(variance) * z
        states.append(x)
    return {"trajectory": np.stack(states), "timesteps": np.asarray(visited, float)}


def ddpm(c: Config, n: int, x: np.ndarray, noise: np.ndarray, eta: float) -> Arrays:
    table, visited, states = abars(c), timesteps(c, n), []
    for z, t, s in zip(noise, visited, [*visited[1:], -1], strict=True):
        abar, before = table[t], table[s] if s >= 0 else 1.0
        x0, _ = ends(c, x, t, abar)
        beta = 1 - abar / before
        mean = (math.sqrt(before) * beta * x0 + math.sqrt(1 - beta) * (1 - before) * x) / (1 - abar)
        variance = beta if c["variance_type"] == "fixed_large" else beta * (1 - before) / (1 - abar)
        x = mean + (math.sqrt(variance) * z if t > 0 else 0)
        states.append(x)
    return {"trajectory": np.stack(states), "timesteps": np.asarray(visited, float)}


def dpmpp(c: Config, n: int, x: np.ndarray, noise: np.ndarray, eta: float) -> Arrays:
    table, states, earlier = abars(c), [], None
    # One more timestep than steps, and the last is not visited.
    visited = timesteps(c, n) if c["timestep_spacing"] == "trailing" else timesteps(c, n + 1)[:n]
    levels = [math.sqrt((1 - table[t]) / table[t]) for t in visited]
    levels.append(0.0 if c["final_sigmas_type"] == "zero" else math.sqrt((1 - table[0]) / table[0]))
    for i, t in enumerate(visited):
        level, next_level = levels[i : i + 2]
        alpha, next_alpha = ((1 + s**2) ** -0.5 for s in (level, next_level))
        x0, _ = ends(c, x, t, alpha**2)
        mixed = x0
        first_order = next_level == 0 or (i == n - 1 and n < 15) or c["solver_order"] == 1
        if earlier is not None and not first_order:
            r = math.log(levels[i - 1] / level) / math.log(level / next_level)
            mixed = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * earlier
        x = next_level * next_alpha / (level * alpha) * x + next_alpha * (1 - next_level / level) * mixed
        earlier = x0
        states.append(x)
    return {"trajectory": np.stack(states), "timesteps": np.asarray(visited, float), "sigmas": np.asarray(levels)}


def ancestral(c: Config, n: int, x: np.ndarray, noise: np.ndarray, eta: float) -> Arrays:
    table, visited, states = abars(c), timesteps(c, n), []
    table[-1] = max(table[-1], 2.0**-24)
    levels = [math.sqrt((1 - table[t]) / table[t]) for t in visited] + [0.0]
    for i, t in enumerate(visited):
        level, after = levels[i : i + 2]
        x0, _ = ends(c, x / math.sqrt(level**2 + 1), t, table[t])
        up = math.sqrt(after**2 * (level**2 - after**2) / level**2)
        x = x0 + (x - x0) * math.sqrt(after**2 - up**2) / level + up * noise[i]
        states.append(x)
    return {"trajectory": np.stack(states), "timesteps": np.asarray(visited, float), "sigmas": np.asarray(levels)}


def flow(c: Config, n: int, x: np.ndarray, noise: np.ndarray, eta: float) -> Arrays:
    total, states = c["num_train_timesteps"], []

    def shifted(t: float) -> float:
        return c["shift"] * t / (1 + (c["shift"] - 1) * t)

    lowest = shifted(1 / total)
    levels = [shifted(1 + i * (lowest - 1) / (n - 1)) for i in range(n)] + [0.0]
    for t, s in zip(levels[:-1], levels[1:], strict=True):
        x = x + (s - t) * network(x, total * t)
        states.append(x)
    times = total * np.asarray(levels[:-1])
    return {"trajectory": np.stack(states), "timesteps": times, "sigmas": np.asarray(levels)}


SAMPLERS: dict[str, Callable[[Config, int, np.ndarray, np.ndarray, float], Arrays]] = dict(
    ddim=ddim, ddpm=ddpm, dpmpp=dpmpp, flow=flow, ancestral=ancestral
)
BETAS: Config = dict(
    num_train_timesteps=1000,
    beta_schedule="linear",
    beta_start=1e-4,
    beta_end=0.02,
    prediction_type="epsilon",
    timestep_spacing="leading",
    steps_offset=0,
    rescale_betas_zero_snr=False,
)
SCALED = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
COSINE = dict(beta_schedule="squaredcos_cap_v2")
FINE = dict(num_train_timesteps=400, beta_start=2e-4, beta_end=0.05)
V, X0 = dict(prediction_type="v_prediction"), dict(prediction_type="sample")
LEADING, TRAILING, LINSPACE = (dict(timestep_spacing=name) for name in ("leading", "trailing", "linspace"))
UNCUT = dict(clip_sample=False)
ZERO_SNR = dict(rescale_betas_zero_snr=True)
DYNAMIC = dict(thresholding=True, dynamic_thresholding_ratio=0.8, sample_max_value=1.7)

# (sampler, steps, eta, what differs from its defaults)
VARIANTS: list[tuple[str, int, float, Config]] = [
    ("ddim", 7, 0.3, SCALED | LEADING | UNCUT | dict(steps_offset=1)),
    ("ddim", 9, 1.0, LINSPACE | V | dict(set_alpha_to_one=False, clip_sample_range=0.6)),
    ("ddim", 6, 0.7, TRAILING | FINE | DYNAMIC),
    ("ddim", 48, 0.0, TRAILING | COSINE | X0 | UNCUT | dict(set_alpha_to_one=False)),
    ("ddpm", 9, 0.0, TRAILING | SCALED | UNCUT | dict(variance_type="fixed_large")),
    ("ddpm", 11, 0.0, LINSPACE | COSINE | V | dict(clip_sample_range=1.5)),
    ("ddpm", 6, 0.0, LEADING | X0 | DYNAMIC | dict(variance_type="fixed_large", steps_offset=1)),
    ("ddpm", 100, 0.0, TRAILING | FINE | dict(variance_type="fixed_small_log")),
    ("dpmpp", 12, 0.0, LINSPACE),
    ("dpmpp", 16, 0.0, TRAILING | SCALED | dict(final_sigmas_type="sigma_min")),
    ("dpmpp", 8, 0.0, LEADING | V | DYNAMIC | dict(final_sigmas_type="sigma_min", steps_offset=1)),
    ("dpmpp", 7, 0.0, LINSPACE | COSINE | X0 | dict(solver_order=1)),
    ("ddim", 8, 0.5, TRAILING | SCALED | V | UNCUT | ZERO_SNR),
    ("ddim", 6, 0.0, TRAILING | COSINE | X0 | ZERO_SNR),
    ("ancestral", 9, 0.0, TRAILING | COSINE | V | ZERO_SNR),
    ("ancestral", 7, 0.0, LEADING | X0 | ZERO_SNR | dict(steps_offset=3)),
    ("ancestral", 12, 0.0, TRAILING | SCALED),
    ("flow", 9, 0.0, dict(shift=2.5)),
    ("flow", 5, 0.0, dict(shift=0.6, num_train_timesteps=300)),
]
DEFAULTS: dict[str, Config] = dict(
    ddim=BETAS | dict(clip_sample=True, clip_sample_range=1.0, set_alpha_to_one=True),
    ddpm=BETAS | dict(clip_sample=True, clip_sample_range=1.0, variance_type="fixed_small"),
    dpmpp=BETAS | dict(solver_order=2, final_sigmas_type="zero", timestep_spacing="linspace"),
    ancestral=BETAS | dict(timestep_spacing="linspace"),
    flow=dict(num_train_timesteps=1000, shift=1.0),
)


@pytest.mark.parametrize(("sampler", "steps", "eta", "fields"), VARIANTS)
def test_cases_of_other_settings_agree_with_the_numpy_samplers(
    sampler: str, steps: int, eta: float, fields: Config
) -> None:
    random = np.random.default_rng(0)
    start, noise = random.normal(size=(2, 3, 4, 2)), random.normal(size=(steps, 2, 3, 4, 2))
    outputs = SAMPLERS[sampler](DEFAULTS[sampler] | fields, steps, start, noise, eta)
    # Only what differs is in the case: the reference's defaults are known.
    hyperparameters = dict(config=fields, steps=steps, eta=eta or None)
    source = f"diffusers 0.42.1 {CLASSES[sampler]}Scheduler"
    error, tolerance = compare(Case(source, hyperparameters, dict(x_init=start, noise=noise), outputs, {}))
    assert error <= tolerance


# Each setting of a stored case, changed a little: (file, what changes)
CHANGES: list[tuple[str, Config]] = [
    ("ddim_eta1_leading10", dict(eta=0.99)),
    ("ddim_eta1_leading10", dict(steps=11)),
    ("ddim_eta1_leading10", dict(beta_start=0.00011)),
    ("ddim_eta1_leading10", dict(beta_end=0.0201)),
    ("ddim_eta1_leading10", dict(beta_schedule="scaled_linear")),
    ("ddim_eta1_leading10", dict(num_train_timesteps=990)),
    ("ddim_eta1_leading10", dict(steps_offset=1)),
    ("ddim_eta1_leading10", dict(set_alpha_to_one=False)),
    ("ddim_eta1_leading10", dict(prediction_type="sample")),
    ("ddim_eta1_leading10", dict(clip_sample=True)),
    ("ddpm_large_trailing25_clip", dict(variance_type="fixed_small")),
    ("ddpm_large_trailing25_clip", dict(clip_sample_range=1.01)),
    ("ddpm_large_trailing25_clip", dict(thresholding=True, sample_max_value=1.01)),
    ("dpmpp_2m_20", dict(solver_order=1)),
    ("dpmpp_2m_20", dict(final_sigmas_type="sigma_min")),
    ("dpmpp_2m_20", dict(timestep_spacing="linspace")),
    ("dpmpp_2m_20", dict(use_karras_sigmas=True)),
    ("euler_ancestral_zero_snr", dict(rescale_betas_zero_snr=False)),
    ("euler_ancestral_zero_snr", dict(beta_end=0.0121)),
    ("euler_ancestral_zero_snr", dict(prediction_type="sample")),
    ("euler_ancestral_zero_snr", dict(steps=11)),
    ("flow_euler_28_shift3", dict(shift=3.01)),
    ("flow_euler_28_shift3", dict(num_train_timesteps=999)),
    ("flow_euler_28_shift3", dict(invert_sigmas=True)),
    ("flow_dynamic_shift", dict(use_dynamic_shifting=False, mu=None, image_seq_len=None)),
    ("flow_dynamic_shift", dict(time_shift_type="linear", image_seq_len=None)),
    ("flow_dynamic_shift", dict(num_train_timesteps=999)),
    ("flow_dynamic_shift", dict(mu=1.151, image_seq_len=None)),
    ("flow_dynamic_shift", dict(image_seq_len=4090, mu=None)),
    *(
        ("flow_dynamic_shift_custom_sigmas", {name: value, "mu": None})
        for name, value in dict(
            image_seq_len=1500, base_shift=0.51, max_shift=1.16, base_image_seq_len=300, max_image_seq_len=4000
        ).items()
    ),
]


def changed(stem: str, **fields: Any) -> Case:
    """A stored case with some of its settings changed."""
    case = load(HERE / f"{stem}.npz")
    config = case.hyperparameters["config"] | {name: value for name, value in fields.items() if name not in TOP}
    top = {name: value for name, value in fields.items() if name in TOP}
    return dataclasses.replace(case, hyperparameters=case.hyperparameters | top | {"config": config})


TOP = ("steps", "eta", "mu", "image_seq_len", "use_clipped_model_output", "seed")


@pytest.mark.parametrize(("stem", "fields"), CHANGES)
def test_every_setting_matters(stem: str, fields: Config) -> None:
    error, tolerance = compare(changed(stem, **fields))
    assert error > tolerance


@pytest.mark.parametrize("stem", ["ddim_eta1_leading10", "dpmpp_2m_20", "flow_euler_10"])
def test_perturbed_starts_noise_and_results_fail(stem: str) -> None:
    case = load(HERE / f"{stem}.npz")
    for name, values in case.inputs.items():
        moved = values.copy()
        moved.flat[0] += 1e-2
        error, tolerance = compare(dataclasses.replace(case, inputs=case.inputs | {name: moved}))
        assert error > tolerance, name
    ours = schedulers.run(case)
    for name, values in case.outputs.items():
        moved = values.copy()
        moved.flat[-1] += 2e-4 * np.abs(values).max()
        assert relative_error(ours[name], moved) > tolerance >= relative_error(ours[name], values), name


def test_given_sigmas_matter_each_and_belong_to_flows() -> None:
    case = load(HERE / "flow_dynamic_shift_custom_sigmas.npz")
    for i, moved in enumerate(np.tile(case.inputs["sigmas"], (len(case.inputs["sigmas"]), 1))):
        moved[i] -= 0.001
        error, tolerance = compare(dataclasses.replace(case, inputs=case.inputs | {"sigmas": moved}))
        assert error > tolerance
    other = load(HERE / "ddim_eta1_leading10.npz")
    with pytest.raises(UnsupportedSource, match="sigmas"):
        compare(dataclasses.replace(other, inputs=other.inputs | {"sigmas": case.inputs["sigmas"]}))


UNSUPPORTED: list[tuple[str, Config]] = [
    ("ddim_eta1_leading10", dict(rescale_betas_zero_snr=True)),
    ("ddim_eta1_leading10", dict(trained_betas=[0.1, 0.2])),
    ("ddim_eta1_leading10", dict(beta_schedule="sigmoid")),
    ("ddim_eta1_leading10", dict(beta_start=0.0)),
    ("ddim_eta1_leading10", dict(timestep_spacing="even")),
    ("ddim_eta1_leading10", dict(steps_offset=100)),
    ("ddim_eta1_leading10", dict(variance_type="fixed_small")),  # a setting of another scheduler
    ("ddim_eta1_leading10", dict(seed=0)),
    ("ddim_eta1_leading10", dict(steps=None)),
    ("ddim_epsilon_trailing20", dict(steps=61)),  # the reference rounds to 62 timesteps, the last of them -1
    ("ddpm_small_leading50", dict(variance_type="learned_range")),
    ("ddpm_small_leading50", dict(variance_type="fixed_large_log")),  # not a number in the reference
    ("ddpm_small_leading50", dict(prediction_type="flow_prediction")),
    ("ddpm_small_leading50", dict(eta=0.5)),
    ("dpmpp_2m_20", dict(solver_order=3)),
    ("dpmpp_2m_20", dict(solver_type="heun")),
    ("dpmpp_2m_20", dict(algorithm_type="sde-dpmsolver++")),
    ("dpmpp_2m_20", dict(lambda_min_clipped=-5.0)),
    ("dpmpp_2m_20", dict(use_beta_sigmas=True)),
    ("dpmpp_2m_20", dict(variance_type="learned")),
    ("euler_ancestral_zero_snr", dict(timestep_spacing="linspace")),
    ("dpmpp_2m_20", dict(rescale_betas_zero_snr=True)),
    ("flow_euler_10", dict(stochastic_sampling=True)),
    ("flow_euler_10", dict(use_dynamic_shifting=True)),
    ("flow_euler_10", dict(mu=0.5)),
    ("flow_euler_10", dict(image_seq_len=256)),
    ("ddim_eta1_leading10", dict(image_seq_len=256)),
    ("flow_dynamic_shift", dict(mu=1.1)),  # not on the line
    ("flow_dynamic_shift_custom_sigmas", dict(max_shift=1.2)),
]


@pytest.mark.parametrize(("stem", "fields"), UNSUPPORTED)
def test_settings_that_the_package_has_not_are_named(stem: str, fields: Config) -> None:
    with pytest.raises(UnsupportedSource, match=next(iter(fields))):
        compare(changed(stem, **fields))
