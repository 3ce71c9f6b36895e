"""How every command starts and ends: flags, messages, signals, errors as one line and exit code 2.

A command is a function of parsed flags, and nothing happens when its module is imported:

    COMMAND = Command(__doc__, Flag("workdir", "run directory", pathlib.Path, required=True))

    def main(args):
        from archirf_jax.tasks import run        # what needs jax comes here, so that signals are taken before

    if __name__ == "__main__":
        COMMAND.run(main)

A test or another command calls `main(COMMAND.parse(["--workdir=runs/x"]))` and gets exceptions.
"""

from __future__ import annotations

import json
import logging as std_logging
import math
import os
import pathlib
import shlex
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn

from archirf_jax.errors import UserError, printable
from archirf_jax.files import cache
from archirf_jax.launch import flags, host, messages
from archirf_jax.launch.flags import Flag
from archirf_jax.launch.signals import FAILED, leave_at_once

CLOSED_LOOP = "Event loop is closed"
HELP = ("-h", "-help", "--help", "-helpfull", "--helpfull")


class Command:
    """The flags of a command, and how it is run.

    Args:
        usage: the docstring of its module, for --help.
        flags: what it takes.
        resumable: whether a signal before the first save ends it with code 75, as a run that goes on later.
        device: whether JAX's devices are looked for before it begins; several processes join each other first.
    """

    def __init__(self, usage: str | None, *flags: Flag, resumable: bool = False, device: bool = True) -> None:
        self.usage, self.flags, self.resumable, self.device = usage or "", flags, resumable, device

    def parse(self, argv: Sequence[str]) -> types.SimpleNamespace:
        """The values of the flags by name, and `given`, those that were given.

        Raises:
            UserError: an unknown, missing or wrong flag, or a wrong field of the configuration.
        """
        return flags.parse(self.flags, argv)

    def render(self, error: UserError) -> str:
        """The error's line, in which its field is the flag that sets it or a field of the configuration."""
        return error.render(error.field and flags.name_of(error.field, self.flags))

    def run(self, main: Callable[[types.SimpleNamespace], int | None]) -> NoReturn:
        """Call main(flags) with the arguments of this process and exit: 0, main's own code, or 2 after one line."""
        _set_up_streams()
        leave_at_once(self.resumable)
        host.set_up()
        if any(argument in HELP for argument in sys.argv[1:]):
            sys.stdout.write(f"{self.usage.strip()}\n\n{flags.describe(self.flags)}\n")
            sys.exit(0)
        try:
            args = self.parse(sys.argv[1:])
            messages.set_up()
            _silence_closed_event_loops()
            _set_up_jax()
            if self.device:
                check_devices()
            code = main(args)
        except UserError as e:
            _fail(self.render(e))
        except OSError as e:
            _fail(str(e))
        except MemoryError:
            _fail("the machine has not enough memory for this")
        sys.exit(code)


def check_devices() -> None:
    """Raise a UserError if JAX has no device to compute on."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as e:
        asked = os.environ.get("JAX_PLATFORMS")
        reason = f"JAX_PLATFORMS={asked} is not there; unset it or name another, such as cpu" if asked else str(e)
        raise UserError(f"JAX finds no device to compute on: {reason}") from e


def command_line() -> str:
    """The command that started this process, for "run this again" messages."""
    module = sys.modules["__main__"].__spec__
    start = f"python -m {module.name}" if module else f"python {shlex.quote(sys.argv[0])}"
    return f"{start} {shlex.join(sys.argv[1:])}"


def write_json(figures: Mapping[str, Any]) -> None:
    """Write one JSON object to standard output: for programs, while messages go to standard error.

    Args:
        figures: values that JSON has, arrays, numpy's numbers and paths; numbers that are not finite become null.
    """
    sys.stdout.write(json.dumps(_plain(figures), allow_nan=False) + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, pathlib.Path) else value


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {printable(' '.join(message.split()))}\n")
    sys.stderr.flush()
    os._exit(FAILED)  # exit handlers of libraries would fail again on a full disk, with long messages


def _set_up_streams() -> None:
    """Messages to a closed stream are lost and end nothing."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))


def _silence_closed_event_loops() -> None:
    """Drop the errors of Orbax's other reads and writes after one has failed: they only report a closed event loop."""
    report_exception, report_unraisable = sys.excepthook, sys.unraisablehook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if str(error) != CLOSED_LOOP:
            report_exception(kind, error, trace)

    def unraisablehook(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != CLOSED_LOOP:
            report_unraisable(unraisable)

    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)


def _set_up_jax() -> None:
    """Compute with the same numbers always, and keep compiled programs (JAX_COMPILATION_CACHE_DIR says where)."""
    import jax

    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_threefry_partitionable", True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache("xla")))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:  # the small ones take a second together
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
