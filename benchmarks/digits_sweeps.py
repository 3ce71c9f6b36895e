"""python -m benchmarks.digits_sweeps --workdir=RUN [--out=FILE] [--plot=FILE]: what to choose after training.

Evaluates a run of digits trained on a part of them with snapshots of averages,

    python -m archirf_jax.main --config=configs/dit_rf.py --workdir=RUN --config.data.split='train[:80%]' \\
        --config.ema.sigma_rel='(0.05,0.1)' --config.ema.snapshot_steps=100

first with each guidance scale, then with each width of the average (made by `posthoc_ema`), unguided. Every figure is a
mean over three sets of 1,438 samples, compared with the training images; losses are of the other 359 digits.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
from typing import Any

import matplotlib

from archirf_jax.launch.companions import diffusion
from archirf_jax.launch.evaluation import evaluate_run
from archirf_jax.launch.runs import Run, open_run
from benchmarks.machine import say, write

SCALES = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
WIDTHS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2)
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2)
HELD_OUT = "train[80%:]"
Rows = list[dict[str, Any]]


def samples(run: Run, data_dir: str, scale: float) -> dict[str, Any]:
    """Figures of three sets of samples with this guidance."""
    how = diffusion(run).sampling.replace(guidance_scale=scale)
    return evaluate_run(run, ["samples"], repeats=3, data={"dir": data_dir}, config=how)


def by_scale(run: Run, data_dir: str) -> Rows:
    """A row a guidance scale."""
    return [_row(samples(run, data_dir, scale), scale=scale) for scale in SCALES]


def by_width(workdir: pathlib.Path, data_dir: str) -> Rows:
    """A row a width of the average."""
    posthoc = importlib.import_module("archirf_jax.posthoc_ema")
    posthoc.main(posthoc.COMMAND.parse([f"--workdir={workdir}", f"--std={','.join(map(str, WIDTHS))}"]))
    found = []
    for width in WIDTHS:
        run = open_run(next((workdir / "posthoc").glob(f"std_{width:.3f}_*")))
        held_out = evaluate_run(run, ["loss"], images=3600, data={"dir": data_dir, "split": HELD_OUT})
        found.append(_row(samples(run, data_dir, 1.0), width=width, held_out_loss=held_out["figures"]["loss"]))
    return found


def _row(row: dict[str, Any], **more: float) -> dict[str, Any]:
    say(" ".join(f"{name} {value:g}" for name, value in (more | row["figures"]).items()))
    return more | {name: row[name] for name in ("figures", "errors", "halves")}


def plot(scales: Rows, widths: Rows, path: pathlib.Path) -> None:
    """Precision and recall by guidance, Frechet distance by guidance, and distance and held-out loss by width."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (trade, distance, average) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    recalls, precisions = (_of(scales, name) for name in ("recall", "precision"))
    trade.plot(recalls, precisions, "o-")
    for row, x, y in zip(scales, recalls, precisions, strict=True):
        trade.annotate(f"{row['scale']:g}", (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8)
    real, drawn = (scales[0]["halves"][name] for name in ("real", "samples"))
    trade.plot(real["recall"], real["precision"], "*", color="grey", markersize=12, label="half of the real images")
    trade.plot(drawn["recall"], drawn["precision"], "o", mfc="none", color="C0", label="half of the samples, scale 1")
    trade.set(xlabel="recall", ylabel="precision", title="guidance scales")
    trade.legend(fontsize=8, loc="lower center")
    _bars(distance, scales, "scale", "guidance scale")
    distance.set(ylim=(0, None), title="the same samples")
    _bars(average, widths, "width", "relative width of the average")
    average.set(xscale="log", title="averages of one training, unguided")
    average.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    average.minorticks_off()
    second = average.twinx()
    second.plot([row["width"] for row in widths], [row["held_out_loss"] for row in widths], "s--", color="C1")
    second.set_ylabel("loss of held-out digits", color="C1")
    for panel in (trade, distance, average):
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _of(rows: Rows, name: str) -> list[float]:
    return [row["figures"][name] for row in rows]


def _bars(panel: Any, rows: Rows, key: str, label: str) -> None:
    errors = [row["errors"]["frechet"] for row in rows]
    panel.errorbar([row[key] for row in rows], _of(rows, "frechet"), errors, fmt="o-", capsize=3)
    panel.set(xlabel=label, ylabel="Frechet distance of pixels")


def main() -> None:
    """Measure, say, and with --out and --plot write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    args = parser.parse_args()
    scales, widths = by_scale(open_run(args.workdir), args.data_dir), by_width(args.workdir, args.data_dir)
    write({"scales": scales, "widths": widths}, args.out)
    if args.plot:
        plot(scales, widths, args.plot)


if __name__ == "__main__":
    main()
