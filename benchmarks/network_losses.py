"""python -m benchmarks.network_losses --data=data --runs=runs/networks: train every network briefly.

Each is trained for a few hundred steps of enlarged digits; a plot shows all losses. Their scale depends on the process:
compare each with its own start.
"""

from __future__ import annotations

import argparse
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from archirf_jax.launch.overrides import load_file
from archirf_jax.training.writers import read_metrics
from benchmarks.machine import say, write
from benchmarks.runs import trained

CONFIGS = (
    *(f"dit_designs_rf.py:{design}" for design in ("in_context", "cross_attention", "adaln", "adaln_zero")),
    *("mmdit_rf.py", "adm_ddpm.py", "edm2_edm.py", "edm2_rf.py"),
)
BATCH_SIZE = 16
PATCH_SIZE = 4  # of transformers: as many tokens as a CPU trains
TAIL = 4  # rows of metrics whose mean is the last loss


def name_of(config: str) -> str:
    """A run's name."""
    return config.replace(".py", "").replace(":", "_")


def train(config: str, data: str, workdir: pathlib.Path, steps: int, image_size: int) -> list[dict[str, float]]:
    """The metrics of a short run; one that is there already is not trained again."""
    changes = {
        "data.dir": data,
        "data.image_size": image_size,
        "batch_size": BATCH_SIZE,
        "steps": steps,
        "schedule.warmup_steps": min(50, steps // 4),
        "log.every_steps": max(1, steps // 40),
        "sample.every_steps": steps,
        "checkpoint.every_steps": steps,
    }
    if "dit" in config:
        changes["model.patch_size"] = PATCH_SIZE
    trained(load_file(f"configs/{config}"), workdir, changes)
    return read_metrics(workdir)


def main() -> None:
    """Train, plot, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder of the prepared digits")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/networks"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--image_size", type=int, default=32, help="side that the digits are enlarged to")
    parser.add_argument("--configs", default=",".join(CONFIGS), help="files of configs/")
    parser.add_argument("--plot", type=pathlib.Path, default=pathlib.Path("docs/images/network_losses.png"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results/network_losses.json"))
    given = parser.parse_args()

    found = {}
    figure, panel = plt.subplots(figsize=(8, 4.5))
    for config in given.configs.split(","):
        rows = train(config, given.data, given.runs / name_of(config), given.steps, given.image_size)
        steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
        panel.plot(steps, losses, label=name_of(config))
        found[name_of(config)] = {
            "first": losses[0],
            "last": sum(losses[-TAIL:]) / len(losses[-TAIL:]),
        }
    panel.set(xlabel="training steps", ylabel="loss of its own process", ylim=(None, 1.5))
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    figure.tight_layout()
    given.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.plot, dpi=110)
    write({"steps": given.steps, "image_size": given.image_size, "networks": found}, given.out)
    for name, row in found.items():
        say(f"{name} first {row['first']:.3f} last {row['last']:.3f}")


if __name__ == "__main__":
    main()
