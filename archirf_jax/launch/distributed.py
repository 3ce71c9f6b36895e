"""Several processes as one run: JAX's distributed runtime, from SLURM, Kubernetes, Open MPI, TPU pods or flags.

JAX is imported when it is needed: a command declares these flags before it takes signals.
"""

from __future__ import annotations

import faulthandler
import os

from absl import logging

from archirf_jax.errors import UserError
from archirf_jax.launch.cli import check_devices
from archirf_jax.launch.flags import Flag

FLAGS = (
    Flag(
        "coordinator",
        "HOST:PORT of the first of several processes; 'auto' asks SLURM, Kubernetes, MPI or the TPU pod",
    ),
    Flag("processes", "how many processes train together", int, low=1),
    Flag("process", "the number of this one, from 0", int, low=0),
)
# Seconds after which a process that does not answer counts as dead.
HEARTBEAT_TIMEOUT = 60


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the other processes, where there are any, and look for devices; arguments as the flags of their names.

    Raises:
        UserError: flags that do not fit, the others cannot be reached, or there is no device.
    """
    import jax

    alone = coordinator is None and processes is None and process is None
    in_slurm_step = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if not alone or in_slurm_step:
        automatic = alone or (coordinator == "auto" and processes is None and process is None)
        _join(*((None, None, None) if automatic else _checked(coordinator, processes, process)))
    check_devices()
    if not alone or in_slurm_step:
        logging.info("%d processes with %d devices", jax.process_count(), jax.device_count())


def _checked(coordinator: str | None, processes: int | None, process: int | None) -> tuple[str, int, int]:
    if coordinator is None or processes is None or process is None:
        raise UserError("--coordinator, --processes and --process: give all three, or --coordinator=auto alone")
    if process >= processes:
        raise UserError("process", process, f"must be below --processes={processes}; they count from 0")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError("coordinator", coordinator, "must be HOST:PORT, such as 10.0.0.1:8476, or auto")
    return coordinator, processes, process


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    import jax

    # JAX's own watch of SIGTERM would take that signal from the run, which could not end at once at a second one.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    except (ValueError, RuntimeError) as e:
        raise UserError("coordinator", message=f"the processes do not come together: {str(e).splitlines()[0]}") from e
    faulthandler.disable()  # when XLA ends a process because another is gone, its own message is enough
    if jax.process_index() > 0:
        logging.set_verbosity(logging.WARNING)  # the first process reports what all do
