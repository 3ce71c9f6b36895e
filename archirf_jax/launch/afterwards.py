"""After a training: what it made and what to do with it, or which layer of which step it was stopped for."""

from __future__ import annotations

import pathlib
import shlex

from absl import logging

from archirf_jax.launch.caches import frozen_params
from archirf_jax.launch.runs import open_run
from archirf_jax.training import replay as stopped


def say_what_was_made(workdir: pathlib.Path) -> None:
    """Name the pictures of a run that is done, and the command that samples it."""
    made = [
        *sorted((workdir / "samples").glob("*.png"))[-1:],
        *(workdir / name for name in ("progress.gif", "denoising.gif")),
        *sorted(workdir.glob("*.png")),
    ]
    logging.info("done; look at %s", ", ".join(str(path) for path in made if path.exists()))
    use = getattr(open_run(workdir).task, "use", "").format(workdir=shlex.quote(str(workdir)))
    if use:
        logging.info("next: python -m archirf_jax.sample %s --out=samples.png", use)


def replay(workdir: pathlib.Path) -> None:
    """Run the step again that the run was stopped at, and say which layer was the first without finite numbers.

    Raises:
        UserError: the run was not stopped, or its network is another one by now.
    """
    run = open_run(workdir)
    conclusion = stopped.replay(run.task, workdir, frozen_params(run.config, run.runs))
    stopped.log_report(workdir)
    logging.info("%s", conclusion)
