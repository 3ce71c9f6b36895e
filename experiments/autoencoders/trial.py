"""One autoencoder and the flow in its latents, trained and measured; what is finished is not done again."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from typing import Any

import numpy as np

from archirf_jax import untrusted
from archirf_jax.errors import UserError
from archirf_jax.files import atomic_write
from archirf_jax.launch import latents
from archirf_jax.launch.evaluation import evaluate_run
from archirf_jax.launch.runs import Run
from archirf_jax.training.writers import read_metrics
from benchmarks import image_features
from benchmarks.machine import commit
from benchmarks.runs import trained
from experiments.autoencoders.arms import ARMS, SETS, autoencoder_config, flow_config

FEATURES = image_features.__file__
FIGURES, RECONSTRUCTIONS, SAMPLES = "figures.json", "reconstructions.npz", "samples.npz"
RECONSTRUCTION = ("psnr", "ssim", "ms_ssim", "frechet")
OF_LATENTS = ("latent/std", "latent/saturated", "latent_gain", "kl", "codebook_perplexity")
AT_A_TIME = 64  # images that are drawn or encoded
SHOWN = 8  # samples of each class that are kept
Row = dict[str, Any]


def finished(place: pathlib.Path, wanted: Row) -> Row | None:
    """The row of a trial that was finished with the wanted settings; None where it was not.

    Raises:
        UserError: the place has a trial of other settings, or its row cannot be read.
    """
    path = place / FIGURES
    if not path.exists():
        return None
    try:
        row: Row = untrusted.read_json(path)
        same = row["settings"] == json.loads(json.dumps(wanted))
    except (untrusted.Unreadable, TypeError, LookupError) as e:
        raise UserError("RUNS", str(path), f"is damaged: {e}; delete the folder of this trial") from e
    if not same:
        raise UserError("RUNS", str(place), "holds a trial of other settings; give the same ones or another folder")
    return row


def settings(name: str, arm: str, samples: int) -> Row:
    """What decides a trial's figures besides its seed."""
    return {"samples": samples, "sizes": dataclasses.asdict(SETS[name]), "arm": dataclasses.asdict(ARMS[arm])}


def run_trial(name: str, arm: str, seed: int, data_dir: str, place: pathlib.Path, samples: int) -> Row:
    """Train and measure an arm with a seed, and keep its row and its images in `place`.

    Args:
        name: one of SETS.
        arm: one of ARMS.
        seed: of everything random: parameters, order and noise of both trainings, and samples.
        data_dir: folder of prepared sets.
        place: folder of the trial.
        samples: how many are drawn to be measured.
    """
    held_out, begun = {"split": SETS[name].held_out}, time.process_time()
    autoencoder = trained(autoencoder_config(name, arm, seed, data_dir), place / "autoencoder", {})
    row = {"arm": arm, "seed": seed, "commit": commit(), "settings": settings(name, arm, samples)}
    row |= {"reconstruction": _reconstruction(autoencoder, held_out, seed, place)}
    latents.make_cache(autoencoder, latents.images_of(autoencoder.config.data), place / "latents", False, AT_A_TIME)
    config = flow_config(name, seed, data_dir, autoencoder.directory, place / "latents")
    flow = trained(config, place / "flow", {})
    row |= _generation(flow, held_out, seed, samples)
    last = read_metrics(autoencoder.directory)[-1]
    row["latents"] = {figure: last[figure] for figure in OF_LATENTS if figure in last}
    row["flow_loss"] = read_metrics(flow.directory)[-1]["loss"]
    images = flow.sample(range(flow.config.data.num_classes), SHOWN, seed, batch_size=AT_A_TIME)
    atomic_write(place / SAMPLES, lambda file: np.savez(file, samples=images))
    row["cpu_seconds"] = time.process_time() - begun  # of this call; a trial that was cut short spent more
    atomic_write(place / FIGURES, json.dumps(row, indent=1) + "\n")
    return row


def _reconstruction(run: Run, held_out: Row, seed: int, place: pathlib.Path) -> dict[str, float]:
    """How alike held-out images and their reconstructions are, which are kept."""
    how: Row = dict(features=FEATURES, data=held_out, seed=seed, batch_size=AT_A_TIME)
    figures: dict[str, float] = evaluate_run(run, RECONSTRUCTION, **how, save_images=place / RECONSTRUCTIONS)["figures"]
    return figures


def _generation(run: Run, held_out: Row, seed: int, count: int) -> Row:
    """How far samples are from held-out images, and half of them, beside the two halves of the held-out images."""
    how: Row = dict(features=FEATURES, data=held_out, seed=seed, batch_size=AT_A_TIME)
    found = evaluate_run(run, ("samples",), images=count, **how)
    halves = {f"half_of_{which}": figures["frechet"] for which, figures in found["halves"].items()}
    names = ("frechet", "kernel", "precision", "recall")
    return {"generation": {figure: found["figures"][figure] for figure in names} | halves}
