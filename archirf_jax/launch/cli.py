"""How every command starts and ends: flags, messages, the compilation cache, errors as one line and exit code 2."""

from __future__ import annotations

import logging as std_logging
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

import jax
from absl import app, flags, logging

from archirf_jax.errors import UserError
from archirf_jax.launch.config import CONFIG_FILE_ERRORS, explain

PACKAGE = str(pathlib.Path(__file__).resolve().parents[1])
FAILED = 2
CLOSED_LOOP = "Event loop is closed"


def run(main: Callable[[list[str]], int | None]) -> None:
    """Run a command's `main(argv)` and exit: 0 on success, 2 after one line for a person's mistake."""
    # absl leaves a wrong flag's usage page to us: a person wants the one line.
    app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)


def command_line() -> str:
    """The command that started this process, for "run this again" messages."""
    module = sys.modules["__main__"].__spec__
    start = f"python -m {module.name}" if module else f"python {sys.argv[0]}"
    return f"{start} {shlex.join(sys.argv[1:])}"


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, *CONFIG_FILE_ERRORS) as e:
        _fail(explain(argv[1:]) or _explain_flag(e))
    if "config" in flags.FLAGS and (wrong := explain(argv[1:])):
        _fail(wrong)
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}; every argument is a flag, --name=value")
    return rest


def _explain_flag(error: Exception) -> str:
    if early := re.match(r"Found (--config\.\S+) in argv before", str(error)):
        return f"--config: must come before its fields; move it before {early[1]}"
    missing = re.match(r"flag --(\w+)=None", str(error))
    if not missing:
        return str(error)
    examples = {"config": "configs/dit_rf.py", "workdir": "runs/dit_rf", "name": "digits", "source": "dit"}
    examples |= {"checkpoint": "weights.safetensors", "std": "0.05,0.10", "device": "rtx4090"}
    name = missing[1]
    return f"--{name} is missing" + (f"; give one, such as --{name}={examples[name]}" if name in examples else "")


def _guarded(main: Callable[[list[str]], int | None], argv: list[str]) -> int | None:
    _set_up_messages()
    _silence_closed_event_loops()
    _set_up_compilation_cache()
    try:
        return main(argv)
    except (UserError, OSError) as e:
        _fail(str(e))
    except KeyboardInterrupt:
        _fail("interrupted; what had been saved is intact, and the same command may be given again")


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.stderr.flush()
    os._exit(FAILED)  # without the farewells of libraries, which on a full disk fail again, at length


def _set_up_messages() -> None:
    """This package's messages as plain lines, none of the libraries' beside them: what fails there is raised here."""
    handler = logging.get_absl_handler()
    handler.addFilter(lambda record: record.pathname.startswith(PACKAGE))
    handler.setFormatter(std_logging.Formatter("%(message)s"))
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold(logging.INFO)


def _silence_closed_event_loops() -> None:
    """When a read or write of Orbax fails, the others under way report to an event loop that is gone: no news."""
    report_exception, report_unraisable = sys.excepthook, sys.unraisablehook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if str(error) != CLOSED_LOOP:
            report_exception(kind, error, trace)

    def unraisablehook(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != CLOSED_LOOP:
            report_unraisable(unraisable)

    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)


def cache(name: str) -> pathlib.Path:
    """The folder of this name in the user's cache directory, where things lie that can be made again."""
    home = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
    return pathlib.Path(home) / "archirf_jax" / name


def _set_up_compilation_cache() -> None:
    """Keep compiled programs between runs; JAX_COMPILATION_CACHE_DIR moves the place."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache("xla")))
