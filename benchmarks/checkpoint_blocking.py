"""python -m benchmarks.checkpoint_blocking [--rounds=5] [--out=FILE]: how long a checkpoint keeps a training waiting.

A state of DiT-B/4 (130 M parameters, their average and AdamW's moments, 2.1 GB) is saved as the loop saves it; files
are written behind the training's back. What the training waits for is the call, and whatever the next step takes longer
than one without a save, because it gives its memory away while that is still being read. So the step is a program that
gives the state away and changes all of it. A save waits for the one before; each is written out here before the next.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.tasks.diffusion import Diffusion
from archirf_jax.training.checkpoints import Checkpoints
from benchmarks.machine import describe
from configs import dit_rf


def main() -> int:
    """Measure, print, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--dir", type=pathlib.Path, help="where checkpoints are written; default: a temporary folder")
    args = parser.parse_args()
    config = dit_rf.get_config("imagenet64")
    config.data.num_classes = 1000
    like = jax.eval_shape(Diffusion(config).init, jax.random.key(0))
    chance = np.random.default_rng(0)  # numbers that do not compress
    state = jax.tree.map(lambda leaf: jnp.asarray(chance.random(leaf.shape, np.float32), leaf.dtype), like)
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    calls, after, without, written = [], [], [], []
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        checkpoints = Checkpoints(pathlib.Path(folder) / "checkpoints", keep=1)
        for i in range(args.rounds + 1):
            begun = time.perf_counter()
            state = jax.block_until_ready(step(state))
            without.append(time.perf_counter() - begun)
            state = state.replace(step=jnp.int32(i))
            begun = time.perf_counter()
            checkpoints.save(state, config.to_dict())
            saved = time.perf_counter()
            state = jax.block_until_ready(step(state))
            after.append(time.perf_counter() - saved)
            calls.append(saved - begun)
            checkpoints.wait()
            written.append(time.perf_counter() - begun)
        checkpoints.close()
    blocked = [call + step - usual for call, step, usual in zip(calls[1:], after[1:], without[1:], strict=True)]
    figures = describe() | {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(like.params)),
        "bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like)),
        "seconds_blocked": statistics.median(blocked),
        "seconds_blocked_each": blocked,
        "seconds_of_the_call": statistics.median(calls[1:]),
        "seconds_of_the_step_after": statistics.median(after[1:]),
        "seconds_of_a_step_without_a_save": statistics.median(without[1:]),
        "seconds_until_written": statistics.median(written[1:]),
    }
    print(json.dumps(figures, indent=2))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
