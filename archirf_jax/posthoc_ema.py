"""python -m archirf_jax.posthoc_ema --workdir=runs/x --std=0.05,0.10,0.15

Averages of a run's parameters of any relative width, chosen after training (Karras et al. 2024, Sec. 3.2): each becomes
a run directory WORKDIR/posthoc/std_0.050_step_00002000, that `sample` and `evaluate` use like the run itself. They come
from the snapshots that training keeps where config.ema.stds names widths, such as (0.05, 0.1).
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags, logging

from archirf_jax import registry, tasks
from archirf_jax.errors import UserError
from archirf_jax.launch import cli, run_directory
from archirf_jax.launch import config as configuration
from archirf_jax.training import power_ema
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.power_ema import Snapshot

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
STD = flags.DEFINE_string("std", None, "relative widths of the averages, such as 0.05,0.10,0.15", required=True)
STEP = flags.DEFINE_integer("step", None, "step of the averages; default: of the last snapshot")

FAR = 0.1  # a profile that is missed by more is told of


def parse_stds(text: str) -> list[float]:
    """ "0.05,0.1" -> [0.05, 0.1].

    Raises:
        UserError: not such a list, a width out of range, or one that is there twice.
    """
    try:
        stds = [float(part) for part in text.split(",")]
    except ValueError as e:
        raise UserError(f"--std: {text!r} is no list of relative widths such as 0.05,0.10,0.15") from e
    for std in stds:
        power_ema.check(std, "--std")
    if len(set(stds)) < len(stds):
        raise UserError(f"--std: {text!r} names a width twice; once is enough")
    return stds


def stored(config: Any, folder: pathlib.Path) -> list[Snapshot]:
    """The snapshots of a run, in `folder`.

    Raises:
        UserError: there are none.
    """
    stds = config.get("ema", {}).get("stds", ())
    steps = Checkpoints(folder).steps() if folder.is_dir() else []
    if not stds or not steps:
        raise UserError(
            f"--workdir: {str(folder.parent)!r} holds no snapshots of averages; train with config.ema.stds such as "
            "(0.05, 0.1), they are then stored every config.ema.snapshot_steps"
        )
    return [Snapshot(step, std) for step in steps for std in stds]


def chosen_step(steps: list[int]) -> int:
    """The step that --step asks for, or the last one that has a snapshot.

    Raises:
        UserError: no snapshot is before it, or none after it.
    """
    step = max(steps) if STEP.value is None else STEP.value
    if not min(steps) <= step <= max(steps):
        raise UserError(f"--step: {step} is outside the snapshots, which go from step {min(steps)} to {max(steps)}")
    return step


def place(workdir: pathlib.Path, std: float, step: int) -> pathlib.Path:
    """The run directory of an average, which is new.

    Raises:
        UserError: something is there.
    """
    digits = f"{std:.3f}" if round(std, 3) == std else f"{std:g}"
    path = workdir / "posthoc" / f"std_{digits}_step_{step:08d}"
    if path.exists():
        raise UserError(f"--std: {std:g} at step {step} is there already; use {str(path)!r}, or delete it first")
    return path


def main(argv: list[str]) -> None:
    """Read, weigh, write."""
    del argv
    workdir, stds = pathlib.Path(WORKDIR.value).expanduser(), parse_stds(STD.value)
    config = configuration.load(workdir)
    folder = workdir / "snapshots"
    snapshots = stored(config, folder)
    step = chosen_step([each.step for each in snapshots])
    places = [place(workdir, std, step) for std in stds]
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    read = functools.partial(parameters, Checkpoints(folder), like(task))
    try:
        averages = power_ema.reconstruct(snapshots, read, step, stds)
    except UserError as e:
        raise UserError(f"--workdir: {e} in {str(folder)!r}") from e
    for std, path, average in zip(stds, places, averages, strict=True):
        origin = dict(std=std, step=step, workdir=str(workdir))
        run_directory.write(path, config.to_dict() | {"posthoc": origin}, average.params, step)
        report(std, step, path, average)
    logging.info("next: python -m archirf_jax.sample %s", task.use.format(workdir=places[0]))


def like(task: Any) -> Any:
    """The average of a task: shapes alone."""
    params = jax.eval_shape(task.init_params, jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), params)


def parameters(checkpoints: Checkpoints, shapes: Any, which: Snapshot) -> Any:
    """The parameters of a snapshot."""
    return checkpoints.read(power_ema.item(which.std), shapes, which.step)


def report(std: float, step: int, path: pathlib.Path, average: power_ema.Average) -> None:
    """A line for an average; another where its profile is not what was asked for."""
    count, missed = len(average.snapshots), 100 * average.mismatch
    logging.info("std %g at step %d from %d averages, profile missed by %.3g%%: %s", std, step, count, missed, path)
    if average.mismatch > FAR:
        last = average.snapshots[-1].step
        logging.warning(
            "std %g: its profile is missed by far, the last snapshot is of step %d; ask for that step, or for a width "
            "nearer to config.ema.stds",
            *(std, last),
        )


if __name__ == "__main__":
    cli.run(main)
