"""python -m benchmarks.digits_sweeps --workdir=RUN [--out=FILE] [--plot=FILE]: what to choose after training.

Asks `evaluate` about a run of digits trained on a part of them with snapshots of averages,

    python -m archirf_jax.main --config=configs/dit_rf.py --workdir=RUN --config.data.split='train[:80%]' \\
        --config.ema.stds='(0.05,0.1)' --config.ema.snapshot_steps=100

first with each guidance scale, then with each width of the average (made by `posthoc_ema`), unguided. Every figure is a
mean over three sets of 1,438 samples, beside the training images; losses are of the other 359 digits.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

import matplotlib

from benchmarks.machine import describe

SCALES = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
WIDTHS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2)
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2)
HELD_OUT = "train[80%:]"


def command(name: str, *arguments: str) -> None:
    """Run a command of the package; its messages are shown if it fails."""
    done = subprocess.run([sys.executable, "-m", f"archirf_jax.{name}", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def ask(workdir: pathlib.Path, data_dir: str, *arguments: str) -> dict[str, Any]:
    """The row that `evaluate` adds."""
    command("evaluate", f"--workdir={workdir}", f"--data_dir={data_dir}", *arguments)
    row: dict[str, Any] = json.loads((workdir / "evaluations.jsonl").read_text().splitlines()[-1])
    return row


def by_scale(workdir: pathlib.Path, data_dir: str) -> list[dict[str, Any]]:
    """A row a guidance scale."""
    usual = ("--metrics=samples", "--repeats=3")
    return [_told(ask(workdir, data_dir, *usual, f"--guidance_scale={scale}"), scale=scale) for scale in SCALES]


def by_width(workdir: pathlib.Path, data_dir: str) -> list[dict[str, Any]]:
    """A row a width of the average."""
    command("posthoc_ema", f"--workdir={workdir}", f"--std={','.join(map(str, WIDTHS))}")
    found = []
    for width in WIDTHS:
        place = next((workdir / "posthoc").glob(f"std_{width:.3f}_*"))
        loss = ask(place, data_dir, "--metrics=loss", f"--split={HELD_OUT}", "--images=3600")["figures"]["loss"]
        samples = ask(place, data_dir, "--metrics=samples", "--repeats=3", "--guidance_scale=1")
        found.append(_told(samples, width=width, held_out_loss=loss))
    return found


def _told(row: dict[str, Any], **more: float) -> dict[str, Any]:
    keep = {"figures": row["figures"], "errors": row["errors"], "halves": row["halves"]}
    print(" ".join(f"{name} {value:g}" for name, value in (more | row["figures"]).items()), flush=True)
    return more | keep


def plot(scales: list[dict[str, Any]], widths: list[dict[str, Any]], path: pathlib.Path) -> None:
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
    beside = average.twinx()
    beside.plot([row["width"] for row in widths], [row["held_out_loss"] for row in widths], "s--", color="C1")
    beside.set_ylabel("loss of held-out digits", color="C1")
    for panel in (trade, distance, average):
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _of(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [row["figures"][name] for row in rows]


def _bars(panel: Any, rows: list[dict[str, Any]], key: str, label: str) -> None:
    errors = [row["errors"]["frechet"] for row in rows]
    panel.errorbar([row[key] for row in rows], _of(rows, "frechet"), errors, fmt="o-", capsize=3)
    panel.set(xlabel=label, ylabel="Frechet distance of pixels")


def main() -> int:
    """Measure, print, and with --out and --plot write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    args = parser.parse_args()
    scales, widths = by_scale(args.workdir, args.data_dir), by_width(args.workdir, args.data_dir)
    if args.out:
        args.out.write_text(json.dumps(describe() | {"scales": scales, "widths": widths}, indent=1) + "\n")
    if args.plot:
        plot(scales, widths, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
