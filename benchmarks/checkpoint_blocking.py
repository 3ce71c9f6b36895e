"""python -m benchmarks.checkpoint_blocking [--rounds=5] [--out=FILE]: how long a checkpoint keeps a training waiting.

A state of DiT-B/4 (130 M parameters, their average and AdamW's moments, 2.1 GB) is saved as the loop saves it; files
are written in the background. The training waits for the call, and for the time that the next step takes longer than
one without a save, because it gives its memory away while that is still being read. So the step is a program that
gives the state away and changes all of it. A save waits for the one before; each is written out here before the next.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import TrainState
from archirf_jax.tasks.building import make_task, resolve
from archirf_jax.training.checkpoints import Checkpoints
from benchmarks.machine import say, write
from configs import dit_rf


def figures(rounds: int, directory: pathlib.Path) -> dict[str, object]:
    """Seconds of saves, and of the steps after and without them."""
    state, step = started(), jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    sizes = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.networks["model"].params)),
        "bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
    }
    calls, after, without, written = [], [], [], []
    checkpoints = Checkpoints(directory / "checkpoints", keep=1)
    for i in range(rounds + 1):
        begun = time.perf_counter()
        state = jax.block_until_ready(step(state))
        without.append(time.perf_counter() - begun)
        state = state.replace(step=jnp.int32(i))
        begun = time.perf_counter()
        checkpoints.save(state, {})
        saved = time.perf_counter()
        state = jax.block_until_ready(step(state))
        after.append(time.perf_counter() - saved)
        calls.append(saved - begun)
        checkpoints.wait()
        written.append(time.perf_counter() - begun)
    checkpoints.close()
    blocked = [call + step - usual for call, step, usual in zip(calls[1:], after[1:], without[1:], strict=True)]
    return sizes | {
        "seconds_blocked": statistics.median(blocked),
        "seconds_blocked_each": blocked,
        "seconds_of_the_call": statistics.median(calls[1:]),
        "seconds_of_the_step_after": statistics.median(after[1:]),
        "seconds_of_a_step_without_a_save": statistics.median(without[1:]),
        "seconds_until_written": statistics.median(written[1:]),
    }


def started() -> TrainState:
    """A state of DiT-B/4 with numbers that do not compress."""
    config = dit_rf.get_config("imagenet64")
    resolve(config, 1000)
    random = np.random.default_rng(0)
    like = jax.eval_shape(lambda: make_task(config).init(jax.random.key(0), {}))
    return jax.tree.map(lambda leaf: jnp.asarray(random.random(leaf.shape, np.float32), leaf.dtype), like)


def main() -> None:
    """Measure, say, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--dir", type=pathlib.Path, help="where checkpoints are written; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        found = figures(args.rounds, pathlib.Path(folder))
    for name, value in found.items():
        say(f"{name} {value}")
    write(found, args.out)


if __name__ == "__main__":
    main()
