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
# # Which latents are good to generate in?
#
# The latents of an autoencoder can be held in many ways: by a divergence from normal distributions, by a clip or a
# tanh, by a loss on their spread, by noise before the decoder, by a codebook; and there can be more or fewer of them.
# Each arm changes one thing of a base (`arms.py`); body, steps and optimizer are equal. Of each arm two things are
# measured: how well held-out images come back, and how near the samples of one small flow, trained in the arm's
# latents in the same way for all, come to the held-out images. Do the two go together?
#
# Run it from the root of the repository as a script, `python -m experiments.autoencoders.autoencoders`, or as a
# notebook, made by `jupytext --to ipynb experiments/autoencoders/autoencoders.py`.

# %%
import json
import os
import pathlib
import sys
import time

if pathlib.Path.cwd().name == "autoencoders":  # where a notebook starts
    os.chdir("../..")
sys.path.insert(0, os.getcwd())

import dataclasses

import jax
import numpy as np

from archirf_jax.files import atomic_write
from archirf_jax.visuals import pictures, plots
from benchmarks.machine import describe, say
from experiments.autoencoders.arms import ARMS, SETS
from experiments.autoencoders.summary import by_arm, correlations, insert, page, scatter, table
from experiments.autoencoders.trial import RECONSTRUCTIONS, SAMPLES, SHOWN, finished, run_trial, settings

# The whole experiment by default; smaller by environment variables.
NAMES = os.environ.get("SETS", "openmoji").split(",")
CHOSEN = os.environ.get("ARMS", ",".join(ARMS)).split(",")
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "0,1").split(",")]
COUNT = int(os.environ.get("SAMPLES", "512"))
CPU_MINUTES = float(os.environ.get("CPU_MINUTES", "120"))  # after which no further trial is begun
DATA = os.environ.get("DATA", "data")
RUNS = pathlib.Path(os.environ.get("RUNS", "runs/autoencoders"))
OUT = pathlib.Path(os.environ.get("OUT", "experiments/autoencoders"))
RESULTS, README = OUT / "results.json", OUT / "README.md"
for name in NAMES:  # fewer steps of both trainings; the others stand in arms.py
    fewer = {field: int(os.environ[field.upper()]) for field in ("steps", "flow_steps") if field.upper() in os.environ}
    SETS[name] = dataclasses.replace(SETS[name], **fewer)
OUT.mkdir(parents=True, exist_ok=True)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # seeds of an arm are one program
    jax.config.update("jax_compilation_cache_dir", str(RUNS.absolute() / "xla"))

# %% [markdown]
# ## Trials
#
# An arm with a seed is a trial: an autoencoder, its latents of all training images, their flow, and what is measured.
# A trial that is finished is written at once, and a script that is started again does the missing ones. The first
# seed of every arm comes before the second of any. When the CPU time of a call is used up, the trial under way is
# finished and the rest is written of what is there.


# %%
def place(name: str, arm: str, seed: int) -> pathlib.Path:
    """Where a trial lives."""
    return RUNS / name / f"{arm}_{seed}"


def keep(name: str, rows: list[dict]) -> None:
    """Write what is known of a set to results.json, where what is known of other sets stays."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept[name] = describe() | {"rank_correlation": correlations(rows), "trials": rows}
    atomic_write(RESULTS, json.dumps(kept, indent=1) + "\n")


def trials(name: str) -> list[dict]:
    """The rows of a set's trials: those that are finished, and those that there is time for."""
    every = [(arm, seed) for seed in SEEDS for arm in CHOSEN]
    rows = {at: finished(place(name, *at), settings(name, at[0], COUNT)) for at in every}
    for arm, seed in [at for at in every if rows[at] is None]:
        if time.process_time() > 60 * CPU_MINUTES:
            say(f"{name}: {sum(row is None for row in rows.values())} trials are missing; the same command does them")
            break
        rows[arm, seed] = run_trial(name, arm, seed, DATA, place(name, arm, seed), COUNT)
        say(json.dumps(rows[arm, seed]))
        keep(name, [row for row in rows.values() if row is not None])
    return [row for row in rows.values() if row is not None]


found = {name: rows for name in NAMES if (rows := trials(name))}

# %% [markdown]
# ## Reconstruction against generation
#
# The table gives the mean and both seeds. In the plot a line joins the seeds of an arm; the dotted line is
# what one half of the held-out images has from the other half.

# %%
for name, rows in found.items():
    keep(name, rows)
    say(table(rows))
    say(json.dumps(correlations(rows)))
    if README.exists():
        insert(README, f"table of {name}", table(rows))
    plots.save(scatter(rows), OUT / f"scatter_{name}.png")

# %% [markdown]
# ## Images
#
# On the left held-out images and below them what each arm makes of them; on the right other held-out images and below
# them samples of the flow in each arm's latents. One seed.


# %%
def images(name: str, arm: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(held-out images, their reconstructions, samples of as many classes as there is room for) of a trial."""
    here = place(name, arm, seed)
    with np.load(here / RECONSTRUCTIONS) as back, np.load(here / SAMPLES) as drawn:
        return back["images"], back["reconstructions"], drawn["samples"][::SHOWN][:SHOWN]


for name, rows in found.items():
    made = {arm: images(name, arm, mine[0]["seed"]) for arm, mine in by_arm(rows).items()}
    columns = len(next(iter(made.values()))[2])
    originals = next(iter(made.values()))[0][: 2 * columns]
    whole, names = page(originals, {arm: (back[:columns], drawn) for arm, (_, back, drawn) in made.items()})
    pictures.save_png(pictures.grid(whole, names), OUT / f"images_{name}.png")
