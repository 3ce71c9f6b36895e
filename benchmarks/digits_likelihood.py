"""python -m benchmarks.digits_likelihood --flow=RUN --ddpm=RUN [--out=FILE]: bits per dimension of held-out digits.

The runs are trained on a part of the digits (--config.data.split='train[:80%]') and asked about the rest. A digit's
pixel has 17 levels, so 64 log2(17) / 64 = 4.09 bits are what knowing nothing costs. The models are conditional on the
label. Beside them stand normal distributions fitted to the same training images, one for all and one a class (with
Ledoit-Wolf shrinkage). For DDPM there is also the variational bound, which is in 256 levels and compares with no other
row: its ODE cannot be asked there, as half a level is less noise than the network was ever told of.

Each figure is a mean over images with the standard error of that mean; "probes" is the share of Hutchinson's estimate
in it, "steps" the error of the ODE's steps, estimated from half as many.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from sklearn.covariance import EmpiricalCovariance, LedoitWolf

from archirf_jax.data.images import decode
from archirf_jax.data.sources import open_source
from archirf_jax.evaluation import likelihood
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.samplers.choice import Choice
from benchmarks.machine import describe
from benchmarks.runs import open_run

LEVELS = 17
TRAIN, TEST = "train[:80%]", "train[80%:]"


def images(directory: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, 8, 8, 1) and labels (N,) of a split of the digits."""
    source = open_source("digits", directory=directory, split=split, label_key="label")
    examples = [source[i] for i in range(len(source))]
    return np.stack([decode(image, 8, 1) for image, _ in examples]), np.asarray([label for _, label in examples])


def mean(values: np.ndarray) -> dict[str, float]:
    """The mean and its standard error."""
    return {"bits": float(np.mean(values)), "standard_error": float(np.std(values, ddof=1) / math.sqrt(len(values)))}


def of_ode(workdir: pathlib.Path, x0: np.ndarray, labels: np.ndarray, steps: int) -> dict[str, float]:
    """Bits per dimension along the probability-flow ODE, steps even in the logarithm of the noise."""
    task, params = open_run(workdir)
    denoise = Choice(guidance_scale=1.0).make_denoiser(task.process, task.model_fn(params), task.null)

    @jax.jit
    def run(keys: jax.Array, x0: jax.Array, y: jax.Array) -> Any:
        return likelihood.of_ode(keys, denoise, x0, y, levels=LEVELS, steps=steps)

    found = run(jax.random.split(jax.random.key(0), len(x0)), jnp.asarray(x0), jnp.asarray(labels, jnp.int32))
    probes = float(np.sqrt(np.mean(np.square(found.standard_error)) / len(x0)))
    steps_error = float(np.mean(found.step_error))
    return mean(np.asarray(found.value)) | {"probes": probes, "steps": steps_error}


def of_bound(workdir: pathlib.Path, x0: np.ndarray, labels: np.ndarray) -> dict[str, float] | None:
    """DDPM's variational bound in 256 levels."""
    task, params = open_run(workdir)
    process = task.process
    if not isinstance(process, DDPM):
        return None
    run = jax.jit(lambda x0, y: process.bits_per_dim(jax.random.key(0), task.model_fn(params), x0, y)[0])
    return mean(np.asarray(run(jnp.asarray(x0), jnp.asarray(labels, jnp.int32))))


def of_normal(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Bits per dimension of test images (N, D) under a normal distribution fitted to `train`, both dequantised."""
    random, width = np.random.default_rng(0), 2 / (LEVELS - 1)
    fit = LedoitWolf() if len(train) < 1000 else EmpiricalCovariance()
    fit.fit(train + width * random.uniform(-0.5, 0.5, train.shape))
    moved = test + width * random.uniform(-0.5, 0.5, test.shape)
    log_density = scipy.stats.multivariate_normal(fit.location_, fit.covariance_).logpdf(moved)
    return -log_density / math.log(2) / test.shape[1] - math.log2(width)


def main() -> int:
    """Measure, print, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flow", type=pathlib.Path)
    parser.add_argument("--ddpm", type=pathlib.Path)
    parser.add_argument("--data", default="data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    (train, train_labels), (test, labels) = images(args.data, TRAIN), images(args.data, TEST)
    x0 = test.astype(np.float32) / 127.5 - 1
    flat, flat_train = x0.reshape(len(x0), -1), train.reshape(len(train), -1) / 127.5 - 1
    by_class = np.concatenate([of_normal(flat_train[train_labels == k], flat[labels == k]) for k in range(10)])
    table: dict[str, Any] = {
        "normal": mean(of_normal(flat_train, flat)),
        "normal, one a class": mean(by_class),
    }
    for name in ("flow", "ddpm"):
        workdir = getattr(args, name)
        if workdir:
            table[name] = of_ode(workdir, x0, labels, args.steps)
            bound = of_bound(workdir, x0, labels)
            if bound:
                table[f"{name}, bound in 256 levels"] = bound
    print(f"{'':28}{'bits/dim':>9}{'+-':>8}{'probes':>9}{'steps':>9}")
    for name, row in table.items():
        more = "".join(f"{row[key]:9.4f}" for key in ("probes", "steps") if key in row)
        print(f"{name:28}{row['bits']:9.3f}{row['standard_error']:8.3f}{more}")
    if args.out:
        args.out.write_text(json.dumps(describe() | {"images": len(x0), "rows": table}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
