"""Sampling cases: whole trajectories of diffusers' schedulers, from this package's processes, grids and solvers.

Nothing is computed here but what only the references do: their configuration is translated into the package's parts,
and the package's solver takes the case's noise. All of it in float64, as some trajectories grow large.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import registry
from archirf_jax.contracts import Condition, Denoiser, Extras, Solver
from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.processes.times import shift_time
from archirf_jax.samplers import grids, solvers
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.denoisers import DynamicThreshold, NetworkDenoiser, StaticClip
from archirf_jax.samplers.grids.dynamic_shift import DynamicShift
from archirf_jax.samplers.solvers.ddim import Ddim
from archirf_jax.samplers.solvers.ddpm import Ddpm
from tests.golden.case import Case, UnsupportedSource, choice, settings
from tests.golden.spacings import SIGMA_SPACINGS
from tests.golden.tables import NearlyZero, SinglePrecision

Settings = dict[str, Any]

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large"}
SPACINGS = {name: name for name in ("leading", "trailing", "linspace")}

# What each reference assumes where a case names no value.
HYPERPARAMETERS: Settings = dict(config={}, steps=None, eta=None, use_clipped_model_output=False)
HYPERPARAMETERS |= dict(mu=None, image_seq_len=None)  # of flows alone
OF_NO_FLOW: Settings = dict(mu=None, image_seq_len=None, sigmas=None)
DIFFUSION: Settings = OF_NO_FLOW | dict(eta=(None, 0), use_clipped_model_output=False)
LINE = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
BETAS = dict(
    num_train_timesteps=1000,
    beta_start=0.0001,
    beta_end=0.02,
    beta_schedule="linear",
    trained_betas=None,
    rescale_betas_zero_snr=False,
    prediction_type="epsilon",
    thresholding=False,
    dynamic_thresholding_ratio=0.995,
    sample_max_value=1.0,
    steps_offset=0,
)
CLIP = dict(clip_sample=True, clip_sample_range=1.0)
DDIM = BETAS | CLIP | dict(set_alpha_to_one=True, timestep_spacing="leading")
DDPM_ = BETAS | CLIP | dict(variance_type="fixed_small", timestep_spacing="leading")
RESPACED = dict(use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False)
DPM = (
    BETAS
    | RESPACED
    | dict(
        solver_order=2,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        lower_order_final=True,
        euler_at_final=False,
        use_lu_lambdas=False,
        use_flow_sigmas=False,
        flow_shift=1.0,
        final_sigmas_type="zero",
        lambda_min_clipped=-math.inf,
        variance_type=None,
        timestep_spacing="linspace",
        use_dynamic_shifting=False,
        time_shift_type="exponential",
    )
)
# Of the noise levels, that may be interpolated: only those of whole timesteps have a counterpart.
ANCESTRAL = {name: value for name, value in BETAS.items() if "threshold" not in name and name != "sample_max_value"}
ANCESTRAL |= dict(timestep_spacing="linspace")
FLOW = RESPACED | dict(
    num_train_timesteps=1000,
    shift=1.0,
    use_dynamic_shifting=False,
    base_shift=0.5,
    max_shift=1.15,
    base_image_seq_len=256,
    max_image_seq_len=4096,
    invert_sigmas=False,
    shift_terminal=None,
    time_shift_type="exponential",
    stochastic_sampling=False,
)


class Plan(NamedTuple):
    """What a configuration comes to in this package.

    Attributes:
        grid: (N, 2) times.
        solver: takes the steps.
        process: what x went through.
        wrap: wraps the network's denoiser.
        network_times: (N,), where the reference rounds them; None = the process's own.
        restart: steps before which the solver's state starts anew.
        unscaled: the reference's states are x / alpha.
    """

    grid: np.ndarray
    solver: Solver
    process: Process
    wrap: Callable[[Denoiser], Denoiser] = lambda network: network
    network_times: np.ndarray | None = None
    restart: tuple[int, ...] = ()
    unscaled: bool = False


def run(case: Case) -> dict[str, np.ndarray]:
    """The trajectory, and the times and noise levels that it visits."""
    h = settings("hyperparameter", case.hyperparameters, HYPERPARAMETERS)
    h["sigmas"] = tuple(case.inputs["sigmas"].tolist()) if "sigmas" in case.inputs else None
    defaults, plan_of = choice("scheduler", case.source.split()[2].rstrip(";,"), READERS)
    if not isinstance(h["steps"], int):
        raise UnsupportedSource(f"unsupported hyperparameter steps: {h['steps']!r}; supported: a whole number")
    with jax.enable_x64(True):
        plan = plan_of(settings("config", h["config"], defaults), h)
        times = plan.process.network_time(plan.grid[:, 0]) if plan.network_times is None else plan.network_times
        levels = plan.process.sigma if isinstance(plan.process, RectifiedFlow) else plan.process.ratio
        visited, start = np.append(plan.grid[:, 0], plan.grid[-1, 1]), case.inputs["x_init"]
        alphas = plan.process.alpha(visited) if plan.unscaled else np.ones(len(visited))
        states = trajectory(plan, start * alphas[0], case.inputs.get("noise"))
        return {
            "timesteps": times.astype(np.float64),
            "sigmas": levels(visited),
            "trajectory": states / alphas[1:].reshape(-1, *[1] * start.ndim),
        }


def trajectory(plan: Plan, start: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
    """(N, *start.shape): x after each step; noise (<= N, *start.shape), none where it ends."""
    x = jnp.asarray(start, jnp.float64).reshape(len(start), 1, 1, -1)
    z = np.zeros((len(plan.grid), *x.shape))
    if noise is not None:
        z[: len(noise)] = noise.reshape(-1, *x.shape)[: len(z)]
    denoise = plan.wrap(NetworkDenoiser(plan.process, closed_form))
    step = jax.jit(lambda z, x, t, t_next, *rest: plan.solver.step(z, denoise, x, t, t_next, *rest))
    states = []
    state = plan.solver.init(denoise, plan.grid, x)
    for i, (t, t_next) in enumerate(jnp.asarray(plan.grid)):
        if i in plan.restart:
            state = plan.solver.init(denoise, plan.grid, x)
        times = plan.network_times
        condition = {} if times is None else {"network_time": jnp.full(len(x), times[i], x.dtype)}
        x, state = step(z[i], x, t, t_next, condition, state)
        states.append(np.asarray(x).reshape(start.shape))
    return np.stack(states)


def closed_form(
    x: jax.Array, t: jax.Array, condition: Condition, *, s: jax.Array | None = None
) -> tuple[jax.Array, Extras]:
    """The network of all cases; the condition `network_time` replaces t."""
    a = (condition.get("network_time", t) / 1000).reshape(-1, *[1] * (x.ndim - 1))
    return 0.6 * jnp.tanh(x) * jnp.cos(a) + 0.3 * jnp.sin(2 * x + a) + 0.1 * a, {}


def times_of(process: DDPM, steps: np.ndarray) -> np.ndarray:
    """The times of integer steps."""
    return (steps + 1) / process.steps


def ddim(s: Settings, h: Settings) -> Plan:
    """DDIM goes T // N steps down from each timestep, whichever the next one is."""
    refuse(h, **OF_NO_FLOW)
    process = diffusion(s)
    here = timesteps(s, process, h["steps"])
    before = here - s["num_train_timesteps"] // h["steps"]
    last = 0.0 if s["set_alpha_to_one"] else times_of(process, np.asarray(0.0))
    grid = np.stack([times_of(process, here), np.where(before >= 0, times_of(process, before), last)], axis=1)
    solver = registry.build(solvers, "sample.solver.name", "ddim", {"eta": h["eta"] or 0.0})
    # The reference moves the noise with a cut image only when asked.
    return Plan(grid, solver, process, wrap=cut(s, keep_eps=not h["use_clipped_model_output"]))


def ddpm(s: Settings, h: Settings) -> Plan:
    """DDPM goes from timestep to timestep and then to the data."""
    refuse(h, **DIFFUSION)
    process = diffusion(s, choice("config variance_type", s["variance_type"], VARIANCES))
    here = times_of(process, timesteps(s, process, h["steps"]))
    return Plan(grids.pairs(np.append(here, 0.0)), Scheduler(), process, wrap=cut(s))


def euler_ancestral(s: Settings, h: Settings) -> Plan:
    """Euler's ancestral steps in noise levels are those of DDIM with all its noise, seen through a scale."""
    refuse(h, **DIFFUSION)
    refuse(s, timestep_spacing=("trailing", "leading"))
    process = diffusion(s)
    if process.zero_terminal_snr:
        process = NearlyZero(**dataclasses.asdict(process))
    here = times_of(process, timesteps(s, process, h["steps"]))
    return Plan(grids.pairs(np.append(here, 0.0)), Ddim(eta=1.0), process, unscaled=True)


@dataclasses.dataclass(frozen=True)
class Scheduler(Ddpm):
    """The package's step, and what the reference's differs by.

    It adds noise in every step but that of timestep 0, also where another one is the last. And it computes in single
    precision: between its finest steps the factors of x0 and x are off by up to 3e-4.
    """

    def step(
        self,
        noise: jax.Array,
        denoise: Denoiser,
        x: jax.Array,
        t: jax.Array,
        t_next: jax.Array,
        condition: Condition,
        solver_state: Any,
    ) -> tuple[jax.Array, Any]:
        """x (B, ...) at scalar time t -> x at t_next."""
        process = denoise.process
        assert isinstance(process, DDPM)
        prediction, _ = denoise(x, t, condition, solver_state)
        after, solver_state = super().step(noise, denoise, x, t, t_next, condition, solver_state)
        abars = process.alpha(t) ** 2, process.alpha(t_next) ** 2
        single = factors(*(abar.astype(jnp.float32) for abar in abars))
        for rounded, exact, image in zip(single, factors(*abars), (prediction.x0, x), strict=True):
            after = after + (rounded - exact) * image
        left_out = (t_next == 0) & (process.network_time(t) > 0) & (process.variance == "fixed_large")
        return after + jnp.where(left_out, process.sigma(t), 0) * noise, solver_state


def factors(abar: jax.Array, before: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of x0 and of x in the posterior's mean (Ho et al. 2020, Eq. 7), in the order in which the reference rounds."""
    kept = abar / before
    return jnp.sqrt(before) * (1 - kept) / (1 - abar), jnp.sqrt(kept) * (1 - before) / (1 - abar)


def dpm_solver(s: Settings, h: Settings) -> Plan:
    """DPM-Solver++ of first or second order, over timesteps, spaced noise levels or a flow."""
    refuse(h, **DIFFUSION)
    refuse(s, algorithm_type="dpmsolver++", solver_type="midpoint", variance_type=None, use_dynamic_shifting=False)
    refuse(s, rescale_betas_zero_snr=False)
    name = choice("config solver_order", s["solver_order"], {1: "euler", 2: "dpmpp_2m"})
    to_zero = choice("config final_sigmas_type", s["final_sigmas_type"], {"zero": True, "sigma_min": False})
    steps = h["steps"]
    process, times, network_times = (flow_levels if s["use_flow_sigmas"] else diffusion_levels)(s, steps)
    first = times_of(process, np.asarray(0.0)) if isinstance(process, DDPM) else times[-1]
    grid = grids.pairs(np.append(times, 0.0 if to_zero else first))
    # To sigma 0 the last step is of first order by itself.
    low = s["euler_at_final"] or (s["lower_order_final"] and steps < 15)
    solver = registry.build(solvers, "sample.solver.name", name, {})
    return Plan(
        grid, solver, process, cut(s | CLIP | dict(clip_sample=False)), network_times, (steps - 1,) if low else ()
    )


def diffusion_levels(s: Settings, steps: int) -> tuple[Process, np.ndarray, np.ndarray | None]:
    """(process, times (N,), network times) of DPM-Solver on a diffusion process; see `Plan`."""
    process = diffusion(s)
    if np.log(process.ratio(np.asarray(1.0))) > -s["lambda_min_clipped"]:
        raise UnsupportedSource(f"unsupported config lambda_min_clipped: {s['lambda_min_clipped']} cuts the schedule")
    spacing = next((name for name in SIGMA_SPACINGS if s[name]), None)
    if spacing is None:
        # Leading and linspace are those of one step more, without the last.
        more = s["timestep_spacing"] != "trailing"
        return process, times_of(process, timesteps(s, process, steps + more)[:steps]), None
    # Of the others and of cosine the reference's last digits decide the timesteps.
    refuse(s, use_exponential_sigmas=False, use_beta_sigmas=False, beta_schedule=("linear", "scaled_linear"))
    process = SinglePrecision(**dataclasses.asdict(process))
    table = process.ratio(times_of(process, np.arange(process.steps, dtype=np.float64)))
    sigmas = SIGMA_SPACINGS[spacing](table[-1], table[0], steps)
    network_times = np.round(np.interp(np.log(sigmas), np.log(table), np.arange(len(table))))
    return process, process.time_of_ratio(sigmas), network_times


def flow_levels(s: Settings, steps: int) -> tuple[Process, np.ndarray, np.ndarray | None]:
    """The same on a flow, whose network times are whole numbers."""
    refuse(s, prediction_type="flow_prediction", thresholding=False, final_sigmas_type="zero")
    total = s["num_train_timesteps"]
    times = (1 - np.linspace(1, 1 / total, steps + 1))[:0:-1]
    network_times = np.trunc(s["flow_shift"] * times / (1 + (s["flow_shift"] - 1) * times) * total)
    return RectifiedFlow(time_scale=float(total)), shift_time(times, s["flow_shift"]), network_times


def flow(s: Settings, h: Settings) -> Plan:
    """Euler's method on a rectified flow, over given or even times."""
    refuse(h, eta=(None, 0), use_clipped_model_output=False)
    refuse(s, stochastic_sampling=False)
    process = RectifiedFlow(time_scale=float(s["num_train_timesteps"]))
    times = SamplerConfig.from_config({"grid": flow_grid(s, h), "steps": h["steps"]}).make_grid(process)[:, 0]
    if s["shift_terminal"]:
        times = 1 - (1 - times) * (1 - s["shift_terminal"]) / (1 - times[-1])
    for name, spacing in SIGMA_SPACINGS.items():
        times = spacing(times[0], times[-1], h["steps"]) if s.get(name) else times
    grid = grids.pairs(np.append(times, 0.0))
    return Plan(
        1 - grid if s["invert_sigmas"] else grid, registry.build(solvers, "sample.solver.name", "euler", {}), process
    )


def flow_grid(s: Settings, h: Settings) -> Settings:
    """The grid, whose times before the shift end at a step of training; a constant shift moves that one first."""
    first, shift, tokens = 1 / s["num_train_timesteps"], s["shift"], h["image_seq_len"]
    dynamic = s["use_dynamic_shifting"]
    last = first if dynamic else float(shift_time(np.asarray(first), shift))
    sigmas = h["sigmas"] or tuple(np.linspace(1.0, last, h["steps"]).tolist())
    if not dynamic:
        refuse(h, mu=None, image_seq_len=None)
        return dict(name="shifted", shift=shift, sigmas=sigmas)
    shape = choice("config time_shift_type", s["time_shift_type"], {"exponential": math.exp, "linear": float})
    if tokens is None and h["mu"] is None:
        raise UnsupportedSource("unsupported config use_dynamic_shifting: needs the hyperparameter mu")
    if tokens is None or shape is float:
        refuse(h, image_seq_len=None)
        return dict(name="shifted", shift=shape(h["mu"]), sigmas=sigmas)
    fields = {name: s[name] for name in LINE} | dict(image_seq_len=tokens, sigmas=sigmas)
    mu = DynamicShift(**fields).mu
    if h["mu"] is not None and not math.isclose(h["mu"], mu):
        raise UnsupportedSource(f"unsupported mu: {h['mu']}; {', '.join(LINE)} and image_seq_len give {mu}")
    return dict(name="dynamic_shift", **fields)


def diffusion(s: Settings, variance: str = "fixed_small") -> DDPM:
    """The process of betas and prediction."""
    refuse(s, trained_betas=None, rescale_betas_zero_snr=(False, True))
    if s["rescale_betas_zero_snr"] and s["prediction_type"] == "epsilon":
        raise UnsupportedSource("unsupported config rescale_betas_zero_snr: does not go with prediction_type epsilon")
    schedule = choice("config beta_schedule", s["beta_schedule"], SCHEDULES)
    ends = {} if schedule == "cosine" else {name: s[name] for name in ("beta_start", "beta_end")}
    for name, value in ends.items():
        if not 0 < value < 1:  # 0 means something else to the package
            raise UnsupportedSource(f"unsupported config {name}: {value}; supported: above 0 and below 1")
    prediction = choice("config prediction_type", s["prediction_type"], PREDICTIONS)
    return DDPM(
        schedule=schedule,
        steps=s["num_train_timesteps"],
        prediction=prediction,
        variance=variance,
        zero_terminal_snr=s["rescale_betas_zero_snr"],
        **ends,
    )


def timesteps(s: Settings, process: DDPM, steps: int) -> np.ndarray:
    """(N,) falling integer timesteps."""
    spacing = choice("config timestep_spacing", s["timestep_spacing"], SPACINGS)
    here = process.network_time(SamplerConfig.from_config({"grid": spacing, "steps": steps}).make_grid(process)[:, 0])
    if spacing == "linspace" and steps == 1:
        here = np.zeros(1)  # the reference's one step is the first
    if spacing == "trailing" and len(np.arange(process.steps, 0, -process.steps / steps)) != steps:
        raise UnsupportedSource(f"unsupported steps: {steps} trailing of {process.steps} round to another number")
    here = here + (s["steps_offset"] if spacing == "leading" else 0)
    if not (0 <= here[-1] and here[0] < process.steps):
        raise UnsupportedSource(f"unsupported config steps_offset: {s['steps_offset']} leaves the process's steps")
    return here


def cut(s: Settings, keep_eps: bool = False) -> Callable[[Denoiser], Denoiser]:
    """The thresholds on the predicted image."""
    if s["thresholding"]:
        ratio, largest = s["dynamic_thresholding_ratio"], s["sample_max_value"]
        return lambda network: DynamicThreshold(network, ratio, largest, keep_eps)
    if s["clip_sample"]:
        return lambda network: StaticClip(network, s["clip_sample_range"], keep_eps)
    return lambda network: network


def refuse(given: Settings, **supported: Any) -> None:
    """Raise UnsupportedSource unless each field has the value, or one of the values, named here."""
    for name, values in supported.items():
        choice(name, given[name], dict.fromkeys(values if isinstance(values, tuple) else (values,)))


READERS: dict[str, tuple[Settings, Callable[[Settings, Settings], Plan]]] = {
    "DDIMScheduler": (DDIM, ddim),
    "DDPMScheduler": (DDPM_, ddpm),
    "DPMSolverMultistepScheduler": (DPM, dpm_solver),
    "EulerAncestralDiscreteScheduler": (ANCESTRAL, euler_ancestral),
    "FlowMatchEulerDiscreteScheduler": (FLOW, flow),
}
