# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # DDPM or rectified flow?
#
# The same DiT on the same digits for the same number of steps, once as DDPM (`configs/dit_ddpm.py`: noise prediction,
# linear betas, learned variance) and once as rectified flow (`configs/dit_rf.py`: velocity prediction, logit-normal
# times). Which is better, after how much training, and with how many network evaluations an image?
#
# Run it from the root of the repository as a script, `python -m experiments.ddpm_vs_rf.ddpm_vs_rf`, or as a notebook,
# made by `jupytext --to ipynb experiments/ddpm_vs_rf/ddpm_vs_rf.py`.

# %%
import importlib
import json
import os
import pathlib
import sys

if pathlib.Path.cwd().name == "ddpm_vs_rf":  # where a notebook starts
    os.chdir("../..")
sys.path.insert(0, os.getcwd())

import jax.numpy as jnp
import matplotlib
import numpy as np

from archirf_jax.launch.runs import Run, open_run
from archirf_jax.processes.base import expand
from archirf_jax.tasks.drawing import class_grid
from archirf_jax.training.state import purpose_key
from archirf_jax.visuals import pictures
from benchmarks.digits_classifier import accuracy, features, frechet, of_real, real_images
from benchmarks.machine import say, write
from benchmarks.runs import draw, evaluations, steps_within, trained

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# The whole experiment by default; smaller by environment variables.
STEPS = int(os.environ.get("STEPS", "2000"))
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "0,1").split(",")]
PER_CLASS = int(os.environ.get("PER_CLASS", "100"))
DATA = os.environ.get("DATA", "data")
RUNS = pathlib.Path(os.environ.get("RUNS", "runs/ddpm_vs_rf"))
OUT = pathlib.Path(os.environ.get("OUT", "experiments/ddpm_vs_rf"))
BUDGETS = [int(budget) for budget in os.environ.get("BUDGETS", "5,10,20,50").split(",")]
SOLVERS = int(os.environ.get("SOLVERS", "4"))  # of each model
NAMES = {"rf": "rectified flow", "ddpm": "DDPM"}
COLOURS = {"rf": "tab:blue", "ddpm": "tab:orange"}
STAGES = [STEPS * part // 4 for part in (1, 2, 3, 4)]


def workdir(name: str, seed: int) -> pathlib.Path:
    """Where a training lives."""
    return RUNS / f"{name}_{seed}"


# %% [markdown]
# ## Training
#
# One call a run; all checkpoints are kept to look back at.

# %%
OUT.mkdir(parents=True, exist_ok=True)


def train(name: str, seed: int) -> None:
    """A run of `configs/dit_NAME.py`."""
    changes = {
        "data.dir": DATA,
        "seed": seed,
        "steps": STEPS,
        "schedule.warmup_steps": min(100, STEPS // 2),
        "checkpoint.every_steps": STEPS // 4,
        "checkpoint.keep": 4,
        "sample.every_steps": STEPS,
    }
    trained(importlib.import_module(f"configs.dit_{name}").get_config(), workdir(name, seed), changes)


for name in NAMES:
    for seed in SEEDS:
        train(name, seed)

# %% [markdown]
# The losses cannot be compared: one is an error of the noise, the other of a velocity, and the times differ. Images
# can. The Frechet distance below is taken in the features of a small classifier that was trained on the real digits;
# all samples are drawn without guidance.

# %%
REAL = features(real_images())
FLOOR = of_real(10 * PER_CLASS)  # of real digits drawn anew: what a perfect sampler of the training set would have
WAYS = {
    "rf": [("euler", "uniform"), ("midpoint", "uniform"), ("dpmpp_2m", "uniform"), ("ddpm", "uniform")],
    "ddpm": [("ddim", "trailing"), ("midpoint", "trailing"), ("dpmpp_2m", "trailing"), ("ddpm", "trailing")],
}
WAYS = {name: ways[:SOLVERS] for name, ways in WAYS.items()}


def sampler(solver: str, grid: str, budget: int) -> dict[str, object]:
    """The most steps that cost at most `budget` evaluations, unguided."""
    return {"solver": solver, "grid": grid, "steps": steps_within(solver, budget), "guidance_scale": 1.0}


def measure(run: Run, seed: int, how: dict[str, object]) -> dict[str, float]:
    """Distance to the real digits, and the share of samples with the right label."""
    images, labels = draw(run, PER_CLASS, seed, **how)
    return {"frechet": frechet(features(images), REAL), "accuracy": accuracy(images, labels)}


# %% [markdown]
# ## How many evaluations an image needs

# %%
RUN = {(name, seed): open_run(workdir(name, seed)) for name in NAMES for seed in SEEDS}
by_budget = []
for (name, seed), run in RUN.items():
    for solver, grid in WAYS[name]:
        for budget in BUDGETS:
            how = sampler(solver, grid, budget)
            row = {"model": name, "seed": seed, "solver": solver, "grid": grid}
            row |= {"evaluations": evaluations(solver, steps_within(solver, budget))} | measure(run, seed, how)
            by_budget.append(row)


def average(rows: list[dict], key: str) -> list[tuple[float, float, float, float]]:
    """(key, mean, lowest, highest distance) for each value of `key`."""
    found = []
    for value in sorted({row[key] for row in rows}):
        distances = [row["frechet"] for row in rows if row[key] == value]
        found.append((value, float(np.mean(distances)), min(distances), max(distances)))
    return found


figure, panel = plt.subplots(figsize=(7, 4.5))
for name, ways in WAYS.items():
    for (solver, grid), style in zip(ways, ("o-", "^-", "v--", "+:"), strict=False):
        rows = [row for row in by_budget if (row["model"], row["solver"], row["grid"]) == (name, solver, grid)]
        x, mean, low, high = np.array(average(rows, "evaluations")).T
        panel.plot(x, mean, style, color=COLOURS[name], label=f"{NAMES[name]}: {solver}, {grid}")
        panel.fill_between(x, low, high, color=COLOURS[name], alpha=0.1)
panel.axhline(FLOOR, color="grey", linewidth=1, label="real digits drawn anew")
panel.set(xscale="log", yscale="log", xlabel="network evaluations an image", ylabel="Frechet distance")
panel.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
panel.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
panel.minorticks_off()
panel.legend(fontsize=7)
panel.grid(alpha=0.3)
figure.tight_layout()
figure.savefig(OUT / "evaluations.png", dpi=110)

# %% [markdown]
# ## How much training they need
#
# The checkpoints on the way, with 50 evaluations of each model's most common solver.

# %%
COMMON = {"rf": sampler("euler", "uniform", 50), "ddpm": sampler("ddim", "trailing", 50)}
by_stage = [
    {"model": name, "seed": seed, "step": step} | measure(open_run(workdir(name, seed), step), seed, COMMON[name])
    for name, seed in RUN
    for step in STAGES
]
figure, panel = plt.subplots(figsize=(6, 4))
for name in NAMES:
    x, mean, low, high = np.array(average([row for row in by_stage if row["model"] == name], "step")).T
    panel.plot(x, mean, "o-", color=COLOURS[name], label=NAMES[name])
    panel.fill_between(x, low, high, color=COLOURS[name], alpha=0.15)
panel.set(yscale="log", xlabel="training steps", ylabel="Frechet distance")
panel.legend()
panel.grid(alpha=0.3)
figure.tight_layout()
figure.savefig(OUT / "training.png", dpi=110)

# %% [markdown]
# ## How straight the ways are
#
# Every process becomes a rectified flow when x is divided by alpha + sigma and time is read as sigma / (alpha + sigma).
# In these coordinates the two models' paths from noise to image can be compared. A straight path is as
# long as the distance between its ends.


# %%
def length_over_distance(name: str, seed: int) -> float:
    """Mean over images of the path's length over the distance of its ends; 1 is straight."""
    run = RUN[name, seed]
    task, how = run.task, run.task.sampling.replace(**COMMON[name])
    labels, keys = class_grid(purpose_key(seed, "sample"), range(10), 8)
    states = task.sampler(how, stride=1)(run.params, run.frozen, {"label": labels}, keys)
    grid = how.make_grid(task.process)
    times = jnp.asarray(np.append(grid[:, 0], grid[-1, 1]), states.dtype)
    paths = states / expand(task.process.alpha(times) + task.process.sigma(times), states)
    lengths = jnp.sum(jnp.sqrt(jnp.sum(jnp.diff(paths, axis=0) ** 2, axis=(2, 3, 4))), axis=0)
    return float(jnp.mean(lengths / jnp.sqrt(jnp.sum((paths[-1] - paths[0]) ** 2, axis=(1, 2, 3)))))


straightness = {name: [length_over_distance(name, seed) for seed in SEEDS] for name in NAMES}

# %% [markdown]
# ## Samples
#
# Left rectified flow, right DDPM, from the same noise; rows are classes. From the fewest and from the most evaluations.

# %%
for budget in (BUDGETS[0], BUDGETS[-1]):
    sides = []
    for name in NAMES:
        images, _ = draw(RUN[name, SEEDS[0]], 6, **sampler(*WAYS[name][0], budget))
        sides.append(images.reshape(10, 6, *images.shape[1:]))
    gap = np.full_like(sides[0][:, :1], 255)
    pictures.save_png(pictures.grid(np.concatenate([sides[0], gap, sides[1]], axis=1)), OUT / f"samples_{budget}.png")

# %%
results = {
    "steps": STEPS,
    "images": 10 * PER_CLASS,
    "real": FLOOR,
    "by_evaluations": by_budget,
    "by_training_steps": by_stage,
    "length_over_distance": straightness,
}
write(results, OUT / "results.json")
for row in by_budget + by_stage:
    say(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}))
say(json.dumps(straightness))
