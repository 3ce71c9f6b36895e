"""python -m benchmarks.crash [--kills=20] [--seed=0] [--out=FILE]: a training that is killed again and again.

One training of the digits runs undisturbed. Another, with the same command, is killed (SIGKILL) at random moments: some
while it starts, some while it trains, some while a checkpoint is being written, and started again each time. In the end
parameters, averages, optimizer state and every row of metrics must be those of the first, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping

import jax
import numpy as np

from archirf_jax.data.preparation import prepare
from archirf_jax.launch.runs import open_run
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.writers import read_metrics, rows_without_times
from benchmarks.machine import say, write

MOMENTS = ("start", "training", "save")
SAVING = re.compile(r"\d+\.orbax-checkpoint-tmp")


def command(workdir: pathlib.Path, data: pathlib.Path, steps: int) -> list[str]:
    """A small training with many checkpoints."""
    start = [sys.executable, "-m", "archirf_jax.main", "--config=configs/dit_rf.py", f"--workdir={workdir}"]
    fields = dict(batch_size=32, steps_per_dispatch=5, steps=steps)
    groups: dict[str, dict[str, object]] = {"model": dict(hidden_size=32, depth=1), "schedule": dict(warmup_steps=10)}
    groups |= {"checkpoint": dict(every_steps=10), "log": dict(every_steps=7, tensorboard=False)}
    picture = {"every_steps": steps, "steps": 1, "per_class": 1, "solver.name": "euler", "guidance.scale": 1}
    groups |= {"sample": picture, "data": dict(dir=data)}
    dotted = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
    return [*start, *(f"--config.{name}={value}" for name, value in (fields | dotted).items())]


def kill_at(moment: str, workdir: pathlib.Path, process: subprocess.Popen[bytes], chance: random.Random) -> bool:
    """Wait for such a moment and kill; False if the run ended before it came."""
    checkpoints = workdir / "checkpoints"

    def newest() -> int:
        return max((int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal()), default=0)

    if moment == "start":
        end = time.monotonic() + chance.uniform(0.2, 6)

        def waiting() -> bool:
            return time.monotonic() < end
    elif moment == "training":
        # Not before there is a new checkpoint, so that the next start goes on from one.
        saved, first, rows = newest(), len(read_metrics(workdir)), chance.randint(1, 5)

        def waiting() -> bool:
            return len(read_metrics(workdir)) < first + rows or newest() == saved
    else:

        def waiting() -> bool:
            return not any(SAVING.fullmatch(path.name) for path in checkpoints.glob("*"))

    while waiting():
        if process.poll() is not None:
            return False
        time.sleep(0.0005 if moment == "save" else 0.02)
    if moment == "training":
        time.sleep(chance.uniform(0, 0.1))
    process.kill()
    process.wait()
    return True


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint by its path."""
    like = jax.eval_shape(lambda: open_run(workdir).task.init(jax.random.key(0), {}))
    checkpoints = Checkpoints(workdir / "checkpoints")
    leaves = jax.tree_util.tree_leaves_with_path(checkpoints.restore(like))
    checkpoints.close()
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def differences(first: pathlib.Path, second: pathlib.Path) -> tuple[list[str], int]:
    """(names of what is not the same in two runs, how many arrays the first has)."""
    ours, theirs = arrays(first), arrays(second)
    names = [name for name in ours.keys() | theirs.keys() if name not in ours or name not in theirs]
    names += [name for name in ours.keys() & theirs.keys() if ours[name].tobytes() != theirs[name].tobytes()]
    names += ["metrics.jsonl"] if rows_without_times(first) != rows_without_times(second) else []
    return names, len(ours)


def run(
    kills: int,
    steps: int,
    seed: int,
    folder: pathlib.Path,
    moments: tuple[str, ...] = MOMENTS,
    environment: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """Kill a training as often as `kills`, at such moments in turn; what happened and what differs.

    Args:
        kills: how many.
        steps: of the training.
        seed: of the moments.
        folder: for data and runs.
        moments: some of MOMENTS.
        environment: of the trainings; None = as now, on the CPU.

    Raises:
        RuntimeError: the training ended before it was killed as often.
    """
    data, whole, killed = folder / "data", folder / "whole", folder / "killed"
    prepare("digits", str(data))
    environment = environment or os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run(command(whole, data, steps), check=True, env=environment, capture_output=True)
    chance, done = random.Random(seed), Counter[str]()
    while sum(done.values()) < kills:
        moment = moments[sum(done.values()) % len(moments)]
        process = subprocess.Popen(
            command(killed, data, steps), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if not kill_at(moment, killed, process, chance):
            raise RuntimeError(f"the training ended after {sum(done.values())} kills; give more --steps")
        done[moment] += 1
        say(f"killed {sum(done.values())} of {kills} ({moment})")
    subprocess.run(command(killed, data, steps), check=True, env=environment, capture_output=True)
    differing, count = differences(whole, killed)
    return {"kills": dict(done), "steps": steps, "differing": differing, "arrays": count}


def main() -> int:
    """Run, say, and with --out write JSON; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(args.kills, args.steps, args.seed, pathlib.Path(folder))
    say(json.dumps(figures, indent=2))
    write(figures, args.out)
    return int(bool(figures["differing"]))


if __name__ == "__main__":
    sys.exit(main())
