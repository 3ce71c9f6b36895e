"""python -m benchmarks.digits_likelihood --flow=RUN --ddpm=RUN [--out=FILE]: bits per dimension of held-out digits.

The runs are trained on a part of the digits (--config.data.split='train[:80%]') and measured on the rest. A digit's
pixel has 17 levels, so a uniform distribution costs 64 log2(17) / 64 = 4.09 bits. The models are conditional on the
label. For comparison there are normal distributions fitted to the same training images, one for all and one a class
(with Ledoit-Wolf shrinkage). For DDPM there is also the variational bound, which is in 256 levels and compares with no
other row: half a level of its ODE there is less noise than the network has seen in training.

Each figure is a mean over images with the standard error of that mean; "steps" is the error of the ODE's steps,
estimated from half as many.
"""

from __future__ import annotations

import argparse
import math
import pathlib
from typing import Any

import numpy as np
import scipy.stats
from sklearn.covariance import EmpiricalCovariance, LedoitWolf

from archirf_jax.data.images import decode
from archirf_jax.data.sources import open_source
from archirf_jax.launch.evaluation import evaluate_run
from archirf_jax.launch.runs import open_run
from archirf_jax.processes.ddpm import DDPM
from benchmarks.machine import say, write

LEVELS = 17
TRAIN, TEST = "train[:80%]", "train[80%:]"
Row = dict[str, float]


def images(directory: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 64) in [-1, 1] and labels (N,) of a split of the digits."""
    source = open_source("digits", directory=directory, split=split, label_key="label")
    examples = [source[i] for i in range(len(source))]
    pixels = np.stack([decode(example["image"], 8, 1) for example in examples]).reshape(len(examples), -1)
    return pixels / 127.5 - 1, np.asarray([example["label"] for example in examples])


def of_run(workdir: pathlib.Path, data_dir: str, levels: int, steps: int) -> Row:
    """Bits per dimension of the held-out digits: along the ODE, or of a DDPM at 256 levels by the bound."""
    row = evaluate_run(
        open_run(workdir),
        ["bits_per_dim"],
        levels=levels,
        ode_steps=steps,
        data={"dir": data_dir, "split": TEST},
        images=None,
    )
    (name,) = row["errors"]
    found = {"bits": row["figures"][name], "standard_error": row["errors"][name]}
    return found | {"steps": row["figures"].get("bits_per_dim_step_error", math.nan)}


def of_normal(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Bits per dimension of test images (N, D) under a normal distribution fitted to `train`, both dequantised."""
    random, width = np.random.default_rng(0), 2 / (LEVELS - 1)
    fit = LedoitWolf() if len(train) < 1000 else EmpiricalCovariance()
    fit.fit(train + width * random.uniform(-0.5, 0.5, train.shape))
    moved = test + width * random.uniform(-0.5, 0.5, test.shape)
    log_density = scipy.stats.multivariate_normal(fit.location_, fit.covariance_).logpdf(moved)
    return -log_density / math.log(2) / test.shape[1] - math.log2(width)


def mean(values: np.ndarray) -> Row:
    """The mean and its standard error."""
    return {"bits": float(np.mean(values)), "standard_error": float(np.std(values, ddof=1) / math.sqrt(len(values)))}


def of_normals(data_dir: str) -> dict[str, Row]:
    """The rows of normal distributions."""
    (train, train_labels), (test, labels) = images(data_dir, TRAIN), images(data_dir, TEST)
    by_class = [of_normal(train[train_labels == k], test[labels == k]) for k in range(10)]
    return {"normal": mean(of_normal(train, test)), "normal, one a class": mean(np.concatenate(by_class))}


def main() -> None:
    """Measure, say, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flow", type=pathlib.Path)
    parser.add_argument("--ddpm", type=pathlib.Path)
    parser.add_argument("--data", default="data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    table: dict[str, Any] = of_normals(args.data)
    for name in ("flow", "ddpm"):
        if workdir := getattr(args, name):
            table[name] = of_run(workdir, args.data, LEVELS, args.steps)
            if isinstance(open_run(workdir).task.process, DDPM):  # type: ignore[attr-defined]
                table[f"{name}, bound in 256 levels"] = of_run(workdir, args.data, 256, args.steps)
    say(f"{'':28}{'bits/dim':>9}{'+-':>8}{'steps':>9}")
    for name, row in table.items():
        say(f"{name:28}{row['bits']:9.3f}{row['standard_error']:8.3f}{row.get('steps', math.nan):9.4f}")
    write({"rows": table}, args.out)


if __name__ == "__main__":
    main()
