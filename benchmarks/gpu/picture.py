"""A few minutes of training on openmoji in bfloat16: samples as a PNG, and their Frechet distance in pixels."""

from __future__ import annotations

import pathlib
import tempfile
import time
from typing import Any

from archirf_jax.launch.evaluation import evaluate_run
from archirf_jax.launch.runs import Run
from archirf_jax.training.writers import read_metrics
from archirf_jax.visuals import pictures
from benchmarks.gpu.results import Results, started
from benchmarks.machine import describe
from benchmarks.runs import draw, trained
from configs import dit_rf

FIRST = 200  # steps from which the speed is known
SHARE = 0.8  # of the time, for the training; the rest is for samples
TOY: dict[str, Any] = {
    **{"data.name": "digits", "data.image_size": 8, "data.channels": 1},
    **{"model.hidden_size": 16, "model.depth": 1, "model.num_heads": 2, "model.patch_size": 4},
}


def train(results: Results, toy: bool, workdir: pathlib.Path) -> Run:
    """As many steps as there is time for."""
    begun = time.monotonic()
    first = 20 if toy else FIRST
    changes = {
        "steps": first,
        "schedule.name": "constant",
        "schedule.warmup_steps": first,
        "log.every_steps": first // 2,
        "checkpoint.every_steps": 1_000_000,
        "sample.every_steps": 1_000_000,
        "ema.decay": 0.999,
        "data.dir": str(workdir.parent / "data") if toy else "data",
    } | (TOY if toy else {})
    run = trained(dit_rf.get_config("openmoji"), workdir, changes)
    seconds = read_metrics(workdir)[-1]["seconds_per_step"]
    left = SHARE * results.left - (time.monotonic() - begun) / 2  # that a second start takes
    steps = 2 * first if toy else first + max(0, int(left / seconds))
    results.add("training", {"steps": steps, "images_per_second": run.config.batch_size / seconds})
    return trained(dit_rf.get_config("openmoji"), workdir, changes | {"steps": steps})


def samples(results: Results, run: Run, toy: bool) -> dict[str, Any]:
    """A sheet, and the distance to the images that were trained on."""
    images, labels = draw(run, 2 if toy else 8, steps=4 if toy else 50, guidance_scale=2.0)
    sheet = images.reshape(-1, len(images) // len(set(labels.tolist())), *images.shape[1:])
    pictures.save_png(pictures.grid(sheet), results.path.with_suffix(".png"))
    return evaluate_run(run, ["samples"], images=100 if toy else 3000)["figures"]


def main() -> None:
    """Train, draw, compare."""
    results, toy, _ = started()
    results.add("about", describe())
    with tempfile.TemporaryDirectory() as folder:
        run = train(results, toy, pathlib.Path(folder) / "run")
        results.measure("samples", lambda: samples(results, run, toy), needs=1)


if __name__ == "__main__":
    main()
