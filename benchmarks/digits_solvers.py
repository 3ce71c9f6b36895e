"""python -m benchmarks.digits_solvers --flow=runs/dit_rf --ddpm=runs/dit_ddpm [--out=FILE] [--plot=FILE]

Frechet distance of unguided samples of trained digits models to the real digits, in the features of a classifier, for
each solver and number of network evaluations, and the distance of as many real digits, drawn anew with replacement, to
all of them: what a perfect sampler of the training set would have.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import matplotlib

from archirf_jax.launch.runs import open_run
from benchmarks.digits_classifier import features, frechet, of_real, real_images
from benchmarks.machine import say, write
from benchmarks.runs import draw, evaluations, steps_within

BUDGETS = (5, 10, 20, 40, 80)
HIGHEST = 2.0  # distance that is still plotted; worse samples are not digits
# Per kind of model: solver and grid.
WAYS = {
    "flow": (
        *(("euler", "uniform"), ("heun", "uniform"), ("midpoint", "uniform"), ("dpmpp_2m", "uniform")),
        *(("dpmpp_2m", "karras"), ("edm", "karras"), ("euler_maruyama", "uniform"), ("ddpm", "uniform")),
    ),
    "ddpm": (
        *(("ddim", "trailing"), ("heun", "karras"), ("midpoint", "trailing"), ("dpmpp_2m", "trailing")),
        *(("dpmpp_2m", "karras"), ("edm", "karras"), ("euler_maruyama", "trailing"), ("ddpm", "trailing")),
    ),
}


def rows(kind: str, workdir: pathlib.Path, per_class: int, budgets: tuple[int, ...]) -> list[dict[str, Any]]:
    """One row a way and budget."""
    run, real = open_run(workdir), features(real_images())
    found: list[dict[str, Any]] = []
    for solver, grid in WAYS[kind]:
        for budget in budgets:
            steps = steps_within(solver, budget)
            images, _ = draw(run, per_class, solver=solver, grid=grid, steps=steps)
            row: dict[str, Any] = {"model": kind, "solver": solver, "grid": grid}
            row["evaluations"] = evaluations(solver, steps)
            found.append(row | {"frechet": frechet(features(images), real)})
            say("{model:5} {solver:15} {grid:9} {evaluations:4} {frechet:8.3f}".format(**found[-1]))
    return found


def plot(table: list[dict[str, Any]], floor: float, path: pathlib.Path) -> None:
    """Distance against evaluations, a panel a model, a line a way."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {"flow": "rectified flow", "ddpm": "DDPM"}
    kinds = [kind for kind in titles if any(row["model"] == kind for row in table)]
    figure, panels = plt.subplots(1, len(kinds), figsize=(6 * len(kinds), 4.5), sharey=True, squeeze=False)
    for panel, kind in zip(panels[0], kinds, strict=True):
        for (solver, grid), style in zip(WAYS[kind], ("o-", "s-", "^-", "v-", "v--", "D--", "x:", "+:"), strict=True):
            chosen = [row for row in table if (row["model"], row["solver"], row["grid"]) == (kind, solver, grid)]
            panel.plot(
                [row["evaluations"] for row in chosen],
                [row["frechet"] for row in chosen],
                style,
                label=f"{solver}, {grid}",
            )
        panel.axhline(floor, color="grey", linewidth=1, label="real digits drawn anew")
        panel.set(xscale="log", yscale="log", ylim=(0.9 * floor, HIGHEST))
        panel.set(title=titles[kind], xlabel="network evaluations an image")
        panel.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        panel.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
        panel.minorticks_off()
        panel.legend(fontsize=7)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("Frechet distance in classifier features")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, say, and with --out and --plot write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flow", type=pathlib.Path)
    parser.add_argument("--ddpm", type=pathlib.Path)
    parser.add_argument("--per_class", type=int, default=180)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    args = parser.parse_args()
    floor = of_real(10 * args.per_class)
    say(f"real digits drawn anew {floor:.3f}")
    table = [
        row
        for kind in ("flow", "ddpm")
        if getattr(args, kind)
        for row in rows(kind, getattr(args, kind), args.per_class, BUDGETS)
    ]
    write({"images": 10 * args.per_class, "real": floor, "rows": table}, args.out)
    if args.plot:
        plot(table, floor, args.plot)


if __name__ == "__main__":
    main()
