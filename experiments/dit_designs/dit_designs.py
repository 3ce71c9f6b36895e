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
# # Four ways to condition a transformer on time and label
#
# DiT's paper tries four designs of its block: time and label as two more tokens (in-context), as a sequence that every
# block attends to (cross-attention), as shift and scale of the norms (adaLN), and the same with gates that start at
# zero (adaLN-Zero). Here they are compared at equal steps, on digits, with rectified flow
# (`configs/dit_designs_rf.py`).
#
# Run it from the root of the repository as a script, `python -m experiments.dit_designs.dit_designs`, or as a notebook,
# made by `jupytext --to ipynb experiments/dit_designs/dit_designs.py`.

# %%
import json
import os
import pathlib
import sys

if pathlib.Path.cwd().name == "dit_designs":  # where a notebook starts
    os.chdir("../..")
sys.path.insert(0, os.getcwd())

import jax.numpy as jnp
import matplotlib
import numpy as np

from archirf_jax.launch.runs import open_run
from archirf_jax.models.dit import PRESETS, DiT
from archirf_jax.training.writers import read_metrics
from archirf_jax.visuals import pictures
from benchmarks.digits_classifier import accuracy, features, frechet, of_real, real_images
from benchmarks.flops import gflops, parameters, shapes_of
from benchmarks.machine import say, write
from benchmarks.runs import draw, trained
from configs import dit_designs_rf

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# The whole experiment by default; smaller by environment variables.
STEPS = int(os.environ.get("STEPS", "1000"))
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "0,1").split(",")]
PER_CLASS = int(os.environ.get("PER_CLASS", "100"))
DATA = os.environ.get("DATA", "data")
RUNS = pathlib.Path(os.environ.get("RUNS", "runs/dit_designs"))
OUT = pathlib.Path(os.environ.get("OUT", "experiments/dit_designs"))
COLOURS = {
    "in_context": "tab:green",
    "cross_attention": "tab:red",
    "adaln": "tab:blue",
    "adaln_zero": "tab:orange",
}
DESIGNS = {name: COLOURS[name] for name in os.environ.get("DESIGNS", ",".join(COLOURS)).split(",")}
STAGES = [STEPS * part // 8 for part in (1, 2, 4, 8)]
BATCH_SIZE = 128
UNGUIDED = {"solver": "euler", "grid": "uniform", "steps": 50, "guidance_scale": 1.0}
LABEL = {"label": jnp.zeros(1, jnp.int32)}


def workdir(design: str, seed: int) -> pathlib.Path:
    """Where a training lives."""
    return RUNS / f"{design}_{seed}"


# %% [markdown]
# ## Training
#
# One call a run, the same data, noise and optimizer for all; checkpoints on the way are kept.

# %%
OUT.mkdir(parents=True, exist_ok=True)


def train(design: str, seed: int) -> None:
    """A run of `configs/dit_designs_rf.py`."""
    changes = {
        "data.dir": DATA,
        "seed": seed,
        "steps": STEPS,
        "batch_size": BATCH_SIZE,
        "schedule.warmup_steps": min(100, STEPS // 2),
        "log.every_steps": max(1, STEPS // 80),
        "checkpoint.every_steps": max(1, STEPS // 8),
        "checkpoint.keep": 8,
        "sample.every_steps": STEPS,
    }
    trained(dit_designs_rf.get_config(design), workdir(design, seed), changes)


for design in DESIGNS:
    for seed in SEEDS:
        train(design, seed)

# %% [markdown]
# ## What each costs
#
# Multiply-adds of a forward pass, here and for DiT-XL/2 on latents of 32x32x4, as in the paper.


# %%
def cost(design: str) -> dict[str, float]:
    """Parameters and Gflops of the network trained here and of DiT-XL/2."""
    task = open_run(workdir(design, SEEDS[0])).task
    large = DiT(num_classes=1000, learn_sigma=True, conditioning=design, scan=True, **PRESETS["XL/2"])  # one block
    return {
        "gflops": gflops(task.model, task.shape, LABEL),
        "parameters": parameters(shapes_of(task.model, task.shape, LABEL)[0]),
        "xl2_gflops": gflops(large, (32, 32, 4), LABEL),
        "xl2_parameters": parameters(shapes_of(large, (32, 32, 4), LABEL)[0]),
    }


costs = {design: cost(design) for design in DESIGNS}

# %% [markdown]
# ## How good they are after equal steps
#
# Frechet distance to the real digits in the features of a small classifier trained on these, over unguided samples of
# 50 Euler steps; the share of samples that the classifier gives the label they were drawn for; the training loss.

# %%
REAL = features(real_images())
FLOOR = of_real(10 * PER_CLASS)  # of real digits drawn anew


def measure(design: str, seed: int, step: int) -> dict[str, object]:
    """Distance to the real digits, share of right labels, and the compute of the training so far."""
    images, labels = draw(open_run(workdir(design, seed), step), PER_CLASS, seed, **UNGUIDED)
    compute = 3 * costs[design]["gflops"] * BATCH_SIZE * step  # a backward pass costs two forward passes
    found = {"frechet": frechet(features(images), REAL), "accuracy": accuracy(images, labels)}
    return {"design": design, "seed": seed, "step": step, "training_gflops": compute} | found


rows = [measure(design, seed, step) for design in DESIGNS for seed in SEEDS for step in STAGES]


def curve(design: str, key: str, value: str) -> np.ndarray:
    """(3, stages): key, mean of value, and half the spread over seeds."""
    found = []
    for step in STAGES:
        there = [row for row in rows if row["design"] == design and row["step"] == step]
        values = [row[value] for row in there]
        found.append((there[0][key], np.mean(values), (max(values) - min(values)) / 2))
    return np.array(found).T


figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for panel, key, label in zip(
    panels, ("step", "training_gflops"), ("training steps", "training compute in Gflops"), strict=True
):
    for design, colour in DESIGNS.items():
        x, mean, spread = curve(design, key, "frechet")
        panel.errorbar(x, mean, spread, fmt="o-", color=colour, label=design, capsize=2)
    panel.axhline(FLOOR, color="grey", linewidth=1, label="real digits drawn anew")
    panel.set(xscale="log", yscale="log", xlabel=label)
    panel.grid(alpha=0.3)
panels[0].set_ylabel("Frechet distance")
panels[0].legend(fontsize=8)
figure.tight_layout()
figure.savefig(OUT / "designs.png", dpi=110)

# %%
figure, panel = plt.subplots(figsize=(6, 4))
final_loss = {}
for design, colour in DESIGNS.items():
    logs = [read_metrics(workdir(design, seed)) for seed in SEEDS]
    steps, losses = [row["step"] for row in logs[0]], np.mean([[row["loss"] for row in log] for log in logs], axis=0)
    final_loss[design] = float(np.mean(losses[-max(1, len(losses) // 8) :]))
    panel.plot(steps, losses, color=colour, label=design)
panel.set(yscale="log", xlabel="training steps", ylabel="loss")
panel.legend()
panel.grid(alpha=0.3)
figure.tight_layout()
figure.savefig(OUT / "loss.png", dpi=110)

# %% [markdown]
# ## Samples
#
# From the same noise after an eighth of the training (above) and at its end (below): in-context, cross-attention,
# adaLN, adaLN-Zero from left to right, a row a class.

# %%
sheets = []
for step in (STAGES[0], STAGES[-1]):
    sides = []
    for design in DESIGNS:
        images, _ = draw(open_run(workdir(design, SEEDS[0]), step), 4, **UNGUIDED)
        sides += [images.reshape(10, 4, *images.shape[1:]), np.full((10, 1, *images.shape[1:]), 255, np.uint8)]
    sheets += [np.concatenate(sides[:-1], axis=1)[:6]]
gap = np.full_like(sheets[0][:1], 255)
pictures.save_png(pictures.grid(np.concatenate([sheets[0], gap, sheets[1]])), OUT / "samples.png")

# %%
results = {
    "steps": STEPS,
    "images": 10 * PER_CLASS,
    "real": FLOOR,
    "costs": costs,
    "final_loss": final_loss,
    "by_step": rows,
}
write(results, OUT / "results.json")
for row in rows:
    say(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}))
say(json.dumps(costs | final_loss))
