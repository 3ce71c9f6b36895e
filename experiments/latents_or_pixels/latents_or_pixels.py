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
# # Latents or pixels?
#
# One DiT with rectified flow is trained twice for equally long: in the latents of an autoencoder and in pixels, with
# the largest patches whose numbers the network is wide enough for. Which draws the better pictures? The yardstick is
# the Frechet distance to the training images, beside which stands that of real images that no training has seen.
#
# Run it from the root of the repository as a script, `python -m experiments.latents_or_pixels.latents_or_pixels`, or
# as a notebook, made by `jupytext --to ipynb experiments/latents_or_pixels/latents_or_pixels.py`.

# %%
import json
import os
import pathlib
import sys
from typing import Any

if pathlib.Path.cwd().name == "latents_or_pixels":  # where a notebook starts
    os.chdir("../..")
sys.path.insert(0, os.getcwd())

import numpy as np

from archirf_jax.data import library
from archirf_jax.evaluation import distances
from archirf_jax.evaluation.statistics import Moments, moments
from archirf_jax.launch import latents
from archirf_jax.launch.evaluation import evaluate_run
from archirf_jax.launch.runs import Run
from archirf_jax.training.writers import read_metrics
from archirf_jax.visuals import pictures
from benchmarks import image_features
from benchmarks.machine import say, write
from benchmarks.runs import draw, trained
from configs import autoencoder, dit_latent_rf, dit_rf

# The whole experiment by default; smaller by environment variables.
SET = os.environ.get("SET", "openmoji")
STEPS = {"latents": int(os.environ.get("LATENT_STEPS", "4000")), "pixels": int(os.environ.get("PIXEL_STEPS", "950"))}
SCALES = [float(scale) for scale in os.environ.get("SCALES", "1,2,4").split(",")]
DATA = os.environ.get("DATA", "data")
AUTOENCODER = pathlib.Path(os.environ.get("AUTOENCODER", f"runs/ae_{SET}"))
CACHE = pathlib.Path(os.environ.get("CACHE", f"data/latents_{SET}"))
RUNS = pathlib.Path(os.environ.get("RUNS", "runs/latents_or_pixels"))
OUT = pathlib.Path(os.environ.get("OUT", "experiments/latents_or_pixels"))
SPLITS = {"openmoji": ("train", "test"), "digits": ("train[:80%]", "train[80%:]")}
PATCHES = {"openmoji": 8, "digits": 2}  # of pixels
FIGURES = ("frechet", "precision", "recall", "novelty")
COLUMNS = 4  # pictures of a class that are shown of each kind
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Training
#
# The autoencoder is that of `configs/autoencoder.py`; what is there already is not made again. The flow in pixels has
# the configuration of the flow in latents, but for what it diffuses.


# %%
def seconds(run: Run) -> float:
    """What the steps of a training took."""
    rows = read_metrics(run.directory)
    steps = np.diff([0, *(row["step"] for row in rows)])
    return float(np.sum(steps * [row["seconds_per_step"] for row in rows]))


def config_of(kind: str) -> Any:
    """The configuration of a flow."""
    found = dit_latent_rf.get_config(SET)
    if kind == "pixels":
        shared, found = found, dit_rf.get_config(SET)
        for group in ("model", "process", "objective", "optimizer", "schedule", "ema", "sample"):
            found[group] = shared[group]
        found.data.flip, found.batch_size = shared.data.flip, shared.batch_size
        found.model.patch_size = PATCHES[SET]
    found.data.split = SPLITS[SET][0]
    return found


first_stage = trained(autoencoder.get_config(SET), AUTOENCODER, {"data.dir": DATA, "data.split": SPLITS[SET][0]})
latents.make_cache(first_stage, latents.images_of(first_stage.config.data), CACHE, True, 64)
flows = {
    kind: trained(
        config_of(kind),
        RUNS / kind,
        {
            "data.dir": DATA,
            "steps": steps,
            "checkpoint.every_steps": min(steps, 500),
            "sample.every_steps": -(-steps // 3),
        }
        | ({"data.name": f"latents:{CACHE}", "frozen.autoencoder": str(AUTOENCODER)} if kind == "latents" else {}),
    )
    for kind, steps in STEPS.items()
}

# %% [markdown]
# ## How near the samples come
#
# As many samples as there are held-out images, with the labels in the proportion of the training images, which
# both sets are compared with. Novelty far below 1 would say that training images are repeated.


# %%
def at_once(kind: str) -> int:
    """Images that are drawn at a time: as many as are shown, so that one program draws all."""
    return COLUMNS * flows[kind].config.data.num_classes


def real(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split."""
    shape = flows["pixels"].config.data
    dataset = library.load(SET, DATA, split, shape.image_size, shape.channels)
    examples = [dataset.example(number) for number in range(len(dataset))]
    return np.stack([each["image"] for each in examples]), np.asarray([each["label"] for each in examples])


def moments_of(images: np.ndarray) -> Moments:
    """Mean and covariance of the features of images."""
    return moments(image_features.features(images.astype(np.float32) / 127.5 - 1))


def measure(kind: str, scale: float) -> dict[str, Any]:
    """Figures of a flow's samples at a scale of guidance."""
    how = flows[kind].task.sampling.replace(guidance_scale=scale)
    options: dict[str, Any] = {"features": image_features.__file__, "batch_size": at_once(kind)}
    found = evaluate_run(flows[kind], ("samples",), images=len(held_out), config=how, **options)
    return {"kind": kind, "scale": scale} | {name: found["figures"][name] for name in FIGURES}


held_out, labels = real(SPLITS[SET][1])
floor = distances.frechet(moments_of(held_out), moments_of(real(SPLITS[SET][0])[0]))
rows = [measure(kind, scale) for kind in flows for scale in SCALES]
results = {
    "set": SET,
    "steps": STEPS,
    "seconds_of_training": {kind: seconds(run) for kind, run in flows.items()},
    "seconds_of_autoencoder": seconds(first_stage),
    "images": len(held_out),
    "frechet_of_held_out_images": floor,
    "samples": rows,
}
write(results, OUT / "results.json")
say(json.dumps(results, indent=1))

# %% [markdown]
# ## Pictures
#
# A row a class: held-out images, samples in latents, samples in pixels, these at the scale with the least distance.


# %%
def shown(kind: str) -> np.ndarray:
    """Samples (classes, COLUMNS, H, W, C) of a flow."""
    best = min((row for row in rows if row["kind"] == kind), key=lambda row: row["frechet"])
    images, _ = draw(flows[kind], COLUMNS, guidance_scale=best["scale"], batch_size=at_once(kind))
    return images.reshape(-1, COLUMNS, *images.shape[1:])


few = [held_out[labels == label][:COLUMNS] for label in range(max(labels) + 1)]
few = [np.resize(images, (COLUMNS, *held_out.shape[1:])) for images in few]  # repeats those of a rare class
gap = np.full_like(few[0][:1], 255)[None].repeat(len(few), axis=0)
sheet = np.concatenate([np.stack(few), gap, shown("latents"), gap, shown("pixels")], axis=1)
pictures.save_png(pictures.grid(sheet), OUT / "samples.png")
