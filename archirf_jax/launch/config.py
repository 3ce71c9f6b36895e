"""Configurations: explain a wrong one, save it in the run directory, read it back, compare."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import pathlib
import runpy
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
from absl import logging

from archirf_jax.errors import UserError, nearest
from archirf_jax.launch.lock import lock

FILE = "config.json"
# What may change while a run goes on: where it is computed, what is told and kept of it.
FREE = ("mesh.", "accumulation", "log.", "checkpoint.", "guard.", "data.dir", "data.resident_mib", "steps_per_dispatch")
ENDLESS = ("constant", "inverse_sqrt")  # schedules that do not depend on where the run ends

POSITIVE = (
    *(
        "steps",
        "batch_size",
        "accumulation",
        "steps_per_dispatch",
        "data.image_size",
        "optimizer.learning_rate",
        "optimizer.eps",
    ),
    *("log.every_steps", "checkpoint.every_steps", "checkpoint.keep", "sample.every_steps", "ema.snapshot_steps"),
    *("schedule.reference_steps", "mesh.fsdp"),
    *("sample.steps", "sample.shift", "sample.classes", "sample.per_class"),
)
NOT_NEGATIVE = (
    *("seed", "data.num_classes", "data.resident_mib", "schedule.warmup_steps"),
    *("optimizer.weight_decay", "optimizer.clip_norm", "sample.guidance_scale", "mesh.data"),
    *("checkpoint.keep_best", "checkpoint.keep_every"),
)
BELOW_ONE = ("ema.decay", "optimizer.b1", "optimizer.b2", "optimizer.muon_momentum")

BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
PARSERS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (lambda text: int(text, 16 if text.lower().startswith("0x") else 10), "an integer"),
    float: (float, "a number"),
    bool: (lambda text: BOOLEANS[text.lower()], "true or false"),
    tuple: (lambda text: [float(item) for item in ast.literal_eval(text)], "a list of numbers such as (0.2, 0.8)"),
}
CONFIG_FILE_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError),
    *(OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field below `config`."""
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check(config: Any) -> None:
    """Raise a UserError that names the first field whose value is outside its range."""
    values = dict(leaves(config))
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{name}: {value} must be a finite number")
    for names, allowed, test in (
        (POSITIVE, "above 0", lambda x: x > 0),
        (NOT_NEGATIVE, "0 or more", lambda x: x >= 0),
        (BELOW_ONE, "in [0, 1)", lambda x: 0 <= x < 1),
        (("seed", "steps", "steps_per_dispatch", "batch_size"), "below 2**31", lambda x: x < 2**31),
    ):
        for name in names:
            if name in values and not test(values[name]):
                raise UserError(f"config.{name}: {values[name]} must be {allowed}")


def resolve_classes(config: Any, found: int) -> None:
    """Fill in `data.num_classes` where it is 0; fewer than the set has raise a UserError."""
    asked = config.data.num_classes
    if 0 < asked < found:
        raise UserError(
            f"config.data.num_classes: {asked} is below the {found} classes of {config.data.name!r}; 0 = all"
        )
    config.data.num_classes = asked or found


def explain(argv: list[str]) -> str | None:
    """One line for what is wrong with --config or an override (field, what it got, what is allowed), or None."""
    argv = _joined(argv)
    path = next((arg.removeprefix("--config=") for arg in reversed(argv) if arg.startswith("--config=")), None)
    if path is None:
        return None
    file, _, variant = path.partition(":")
    if not os.path.isfile(file):
        return f"--config: no file {file!r}; give one such as configs/dit_rf.py"
    try:
        config = runpy.run_path(file)["get_config"](*([variant] if variant else []))
        config.to_dict()
    except CONFIG_FILE_ERRORS as e:
        return f"--config: {file} fails: {type(e).__name__}: {e}"
    for arg in argv:
        if arg.startswith("--config."):
            name, _, value = arg.removeprefix("--config.").partition("=")
            wrong = _explain_override(config, name, value)
            if wrong:
                return wrong
    return None


def _joined(argv: list[str]) -> list[str]:
    """Every flag as --name=value, as it may also be written -name value."""
    joined: list[str] = []
    for arg in argv:
        if arg.startswith("-"):
            joined.append("--" + arg.lstrip("-"))
        elif joined and "=" not in joined[-1]:
            joined[-1] += f"={arg}"
    return joined


def _explain_override(config: Any, name: str, value: str) -> str | None:
    known = dict(leaves(config))
    if name in known:
        kind = type(known[name])
        wrong = kind in PARSERS and not _parses(PARSERS[kind][0], value)
        return f"config.{name}: {value!r} is not {PARSERS[kind][1]}; its default is {known[name]!r}" if wrong else None
    if any(field.startswith(f"{name}.") for field in known):
        example = next(field for field in known if field.startswith(f"{name}."))
        return f"config.{name}: is a group of fields; set one of them, such as config.{example}"
    return f"config.{name}: got {value!r}, but there is no such field{nearest(name, known)}"


def _parses(parse: Callable[[str], Any], value: str) -> bool:
    try:
        parse(value)
    except (ValueError, KeyError, TypeError, SyntaxError):
        return False
    return True


def save(config: Any, workdir: pathlib.Path) -> None:
    """Write config.json, whole or not at all, unless it is there already."""
    text, path = json.dumps(config.to_dict(), indent=2) + "\n", workdir / FILE
    if path.exists() and path.read_text() == text:
        return
    with path.with_suffix(".part").open("w") as part:
        part.write(text)
        part.flush()
        os.fsync(part.fileno())  # or a power cut might leave the name and not the words
    path.with_suffix(".part").replace(path)


def load(workdir: pathlib.Path, flag: str = "workdir") -> ml_collections.ConfigDict:
    """The configuration of a run; `flag` named its directory.

    Raises:
        UserError: no run there, or its config.json is damaged.
    """
    try:
        text = (workdir / FILE).read_text()
        values = json.loads(text)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UserError(
            f"--{flag}: {str(workdir)!r} holds no run (no {FILE}); train one by python -m archirf_jax.main"
        ) from e
    except ValueError as e:
        raise UserError(f"--{flag}: {str(workdir / FILE)!r} is damaged: {e}") from e
    if not isinstance(values, dict) or not {"task", "data", "model"} <= values.keys():
        raise UserError(f"--{flag}: {str(workdir / FILE)!r} is no configuration of a run")
    return ml_collections.ConfigDict(values).lock()


@contextlib.contextmanager
def claimed(config: Any, workdir: pathlib.Path, changing: bool = False) -> Iterator[None]:
    """Hold a run directory for this run alone; save the configuration in a new one, compare it in an old one.

    Args:
        config: of the run.
        workdir: made, with its parents.
        changing: whether a run that began with another configuration goes on with this one.

    Raises:
        UserError: the directory is in use, or belongs to a run with another configuration; lists the differences.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        holding = lock(workdir)
        holding.__enter__()
    except OSError as e:
        raise UserError(f"--workdir: {str(workdir)!r} cannot be a run directory: {e.strerror}") from e
    try:
        if differences := _differences(config, workdir):
            if not changing:
                raise UserError(
                    f"--workdir: {str(workdir)!r} holds a run with another configuration ({differences}); use the same "
                    "configuration to go on, or --change_config to go on with this one, or another directory"
                )
            logging.warning("from here on with another configuration: %s", differences)
        save(config, workdir)
        yield
    finally:
        holding.__exit__(None, None, None)


def _differences(config: Any, workdir: pathlib.Path) -> str:
    """What decides a run and is otherwise in the one that the directory holds, in words; "" if nothing."""
    # A directory in which nothing was saved belongs to nobody yet: a first start that failed may be corrected.
    saved = any(path for folder in ("checkpoints", "samples") for path in (workdir / folder).glob("[0-9]*"))
    if not (workdir / FILE).exists() or not saved:
        return ""
    old, new = dict(leaves(load(workdir))), dict(leaves(json.loads(json.dumps(config.to_dict()))))
    missing = "(absent)"
    free = (*FREE, "steps") if config.schedule.name in ENDLESS else FREE
    return "; ".join(
        f"{name}: {old.get(name, missing)!r} there, {new.get(name, missing)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, missing) != new.get(name, missing) and not name.startswith(free)
    )
