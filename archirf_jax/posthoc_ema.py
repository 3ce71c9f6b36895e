"""python -m archirf_jax.posthoc_ema --workdir=runs/x --std=0.05,0.10,0.15

Averages of a run's parameters of any relative width, chosen after training (Karras et al. 2024, Sec. 3.2): each becomes
a run directory WORKDIR/posthoc/std_0.050_step_00002000, that `sample` and `evaluate` use like the run itself. They come
from the snapshots that training keeps where config.ema.sigma_rel names widths, such as (0.05, 0.1).
"""

from __future__ import annotations

import functools
import pathlib
import shlex
import types
from typing import TYPE_CHECKING, Any

from archirf_jax.errors import UserError
from archirf_jax.launch.cli import Command
from archirf_jax.launch.flags import WORKDIR, Flag

if TYPE_CHECKING:
    from archirf_jax.training.checkpoints import Checkpoints
    from archirf_jax.training.power_ema import Average, Snapshot

COMMAND = Command(
    __doc__,
    WORKDIR,
    Flag("std", "relative widths of the averages, such as 0.05,0.10,0.15", required=True, example="0.05,0.10"),
    Flag("step", "step of the averages; default: of the last snapshot", int),
)
FAR = 0.1  # a profile that differs by more gives a warning


def parse_stds(text: str) -> list[float]:
    """ "0.05,0.1" -> [0.05, 0.1].

    Raises:
        UserError: not such a list, a width out of range, or one that is there twice.
    """
    from archirf_jax.training import power_ema

    try:
        stds = [float(part) for part in text.split(",")]
    except ValueError as e:
        raise UserError("std", text, "is not a list of relative widths such as 0.05,0.10,0.15") from e
    for std in stds:
        power_ema.check(std, "std")
    if len(set(stds)) < len(stds):
        raise UserError("std", text, "names a width twice; once is enough")
    return stds


def stored(config: Any, folder: pathlib.Path) -> list[Snapshot]:
    """The snapshots of a run, in `folder`.

    Raises:
        UserError: there are none.
    """
    from archirf_jax.training.checkpoints import Checkpoints
    from archirf_jax.training.power_ema import Snapshot

    stds = config.get("ema", {}).get("sigma_rel", ())
    steps = Checkpoints(folder).steps() if folder.is_dir() else []
    if not stds or not steps:
        raise UserError(
            *("workdir", str(folder.parent)),
            "does not hold snapshots of averages; train with config.ema.sigma_rel such as (0.05, 0.1), they are then "
            "stored every config.ema.snapshot_steps",
        )
    return [Snapshot(step, std) for step in steps for std in stds]


def chosen_step(steps: list[int], asked: int | None) -> int:
    """The given step, or the last one that has a snapshot.

    Raises:
        UserError: no snapshot is before it, or none after it.
    """
    step = max(steps) if asked is None else asked
    if not min(steps) <= step <= max(steps):
        raise UserError("step", step, f"is outside the snapshots, which go from step {min(steps)} to {max(steps)}")
    return step


def place(workdir: pathlib.Path, std: float, step: int) -> pathlib.Path:
    """The run directory of an average, which is new.

    Raises:
        UserError: something is there.
    """
    digits = f"{std:.3f}" if round(std, 3) == std else f"{std:g}"
    path = workdir / "posthoc" / f"std_{digits}_step_{step:08d}"
    if path.exists():
        raise UserError("std", std, f"at step {step} is there already; use {str(path)!r}, or delete it first")
    return path


def main(args: types.SimpleNamespace) -> None:
    """Read, weigh, write."""
    from absl import logging

    from archirf_jax.launch import run_directory
    from archirf_jax.launch.runs import open_run
    from archirf_jax.training import power_ema
    from archirf_jax.training.checkpoints import Checkpoints

    stds, run = parse_stds(args.std), open_run(args.workdir)
    folder = args.workdir / "snapshots"
    snapshots = stored(run.config, folder)
    step = chosen_step([each.step for each in snapshots], args.step)
    places = [place(args.workdir, std, step) for std in stds]
    read = functools.partial(parameters, Checkpoints(folder), run.shapes)
    try:
        averages = power_ema.reconstruct(snapshots, read, step, stds)
    except UserError as e:
        raise UserError("workdir", str(folder), f"{e}") from e
    for std, path, average in zip(stds, places, averages, strict=True):
        origin = dict(std=std, step=step, workdir=str(args.workdir))
        run_directory.write(path, run.config.to_dict() | {"posthoc": origin}, average.params, step)
        report(std, step, path, average)
    use = run.task.use.format(workdir=shlex.quote(str(places[0])))  # type: ignore[attr-defined]
    logging.info("next: python -m archirf_jax.sample %s", use)


def parameters(checkpoints: Checkpoints, shapes: Any, which: Snapshot) -> Any:
    """The parameters of a snapshot, by module."""
    from archirf_jax.training import power_ema

    return checkpoints.restore_average(shapes, which.step, power_ema.item(which.std))[1]


def report(std: float, step: int, path: pathlib.Path, average: Average) -> None:
    """Log a line about an average, and a warning where its profile differs from the one that was asked for."""
    from absl import logging

    count, missed = len(average.snapshots), 100 * average.mismatch
    logging.info("std %g at step %d from %d averages, profile missed by %.3g%%: %s", std, step, count, missed, path)
    if average.mismatch > FAR:
        last = average.snapshots[-1].step
        logging.warning(
            "std %g: its profile is missed by far, the last snapshot is of step %d; ask for that step, or for a width "
            "nearer to config.ema.sigma_rel",
            *(std, last),
        )


if __name__ == "__main__":
    COMMAND.run(main)
