"""Several processes as one run: JAX's distributed runtime, from SLURM, Kubernetes, Open MPI, TPU pods or flags."""

from __future__ import annotations

import faulthandler
import os

import jax
from absl import flags, logging

from archirf_jax.errors import UserError

COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of the first of several processes; 'auto' asks SLURM, Kubernetes, MPI or the TPU pod",
)
PROCESSES = flags.DEFINE_integer("processes", None, "how many processes train together", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "the number of this one, from 0", lower_bound=0)
# Seconds after which a process that does not answer counts as dead.
HEARTBEAT_TIMEOUT = 60


def start() -> None:
    """Join the other processes, where there are any.

    Raises:
        UserError: flags that do not fit, or the others cannot be reached.
    """
    coordinator, processes, process = COORDINATOR.value, PROCESSES.value, PROCESS.value
    alone = coordinator is None and processes is None and process is None
    in_slurm_step = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if alone and not in_slurm_step:
        return
    automatic = alone or (coordinator == "auto" and processes is None and process is None)
    if not automatic and (coordinator is None or processes is None or process is None):
        raise UserError("--coordinator, --processes and --process: give all three, or --coordinator=auto alone")
    if processes is not None and process is not None and process >= processes:
        raise UserError(f"--process: {process} must be below --processes={processes}; they count from 0")
    where = None if automatic else coordinator
    # JAX's own watch of SIGTERM would take that signal from the run, which could not end at once at a second one.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(where, processes, process, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    except (ValueError, RuntimeError) as e:
        raise UserError(f"--coordinator: the processes do not come together: {str(e).splitlines()[0]}") from e
    faulthandler.disable()  # when XLA ends a process because another is gone, its own words are enough
    if jax.process_index() > 0:
        logging.set_verbosity(logging.WARNING)  # one tells what all do
    logging.info("%d processes with %d devices", jax.process_count(), jax.device_count())
