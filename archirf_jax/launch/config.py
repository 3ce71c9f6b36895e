"""Configurations: explain a wrong one, save it in the run directory, read it back, compare."""

from __future__ import annotations

import json
import os
import pathlib
import runpy
from collections.abc import Iterator
from typing import Any

import ml_collections

from archirf_jax.errors import UserError, nearest

FILE = "config.json"

POSITIVE = ("steps", "batch_size", "steps_per_dispatch", "data.image_size", "optimizer.learning_rate", "log.every_steps",
            "checkpoint.every_steps", "checkpoint.keep", "sample.every_steps", "sample.steps", "sample.per_class",
            "sample.classes", "sample.shift")
NOT_NEGATIVE = ("seed", "data.resident_mib", "optimizer.weight_decay", "optimizer.clip_norm", "schedule.warmup_steps",
                "sample.guidance_scale", "data.num_classes")
BELOW_ONE = ("ema.decay", "optimizer.b1", "optimizer.b2")


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
    for names, allowed, test in (
        (POSITIVE, "above 0", lambda x: x > 0),
        (NOT_NEGATIVE, "0 or more", lambda x: x >= 0),
        (BELOW_ONE, "in [0, 1)", lambda x: 0 <= x < 1),
    ):
        for name in names:
            if name in values and not test(values[name]):
                raise UserError(f"config.{name}: {values[name]} must be {allowed}")


def explain_override(argv: list[str], error: Exception) -> str:
    """One line for a command line that did not parse: the field, what it got, the nearest valid name."""
    path = next((arg.removeprefix("--config=") for arg in argv if arg.startswith("--config=")), None)
    if path is None:
        return f"{error}" if "config" not in str(error) else f"{error}; name a configuration first, --config=configs/dit_rf.py"
    file, _, variant = path.partition(":")
    if not os.path.isfile(file):
        return f"--config: no file {file!r}; give one such as configs/dit_rf.py"
    config = runpy.run_path(file)["get_config"](*([variant] if variant else []))
    for arg in argv:
        if arg.startswith("--config."):
            name, _, value = arg.removeprefix("--config.").partition("=")
            wrong = _wrong_name(config, name, value)
            if wrong:
                return wrong
    return str(error)


def _wrong_name(config: Any, name: str, value: str) -> str | None:
    known = dict(leaves(config))
    if name in known:
        kind = type(known[name]).__name__
        try:
            {"int": int, "float": float}.get(kind, str)(value)
        except ValueError:
            return f"config.{name}: {value!r} is no {kind}; its default is {known[name]!r}"
        return None
    groups = {field.rpartition(".")[0] for field in known}
    if name in groups:
        return f"config.{name}: is a group of fields; set one of them, such as config.{name}.{next(iter(config[name]))}"
    return f"config.{name}: got {value!r}, but there is no such field{nearest(name, known)}"


def save(config: Any, workdir: pathlib.Path) -> None:
    """Write config.json, whole or not at all."""
    part = workdir / f"{FILE}.part"
    part.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    part.replace(workdir / FILE)


def load(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The configuration of a run.

    Raises:
        UserError: no run there, or its config.json is damaged.
    """
    try:
        text = (workdir / FILE).read_text()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UserError(f"--workdir: {str(workdir)!r} holds no run (no {FILE}); train one by python -m archirf_jax.main") from e
    try:
        return ml_collections.ConfigDict(json.loads(text)).lock()
    except json.JSONDecodeError as e:
        raise UserError(f"--workdir: {str(workdir / FILE)!r} is damaged: {e}") from e


def claim(config: Any, workdir: pathlib.Path) -> None:
    """Save the configuration in a new run directory; in an old one make sure that it is the same.

    Raises:
        UserError: the directory belongs to a run with another configuration; lists the differences.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / FILE).exists():
        return save(config, workdir)
    old, new = dict(leaves(load(workdir))), dict(leaves(json.loads(json.dumps(config.to_dict()))))
    missing = "(absent)"
    differences = [
        f"{name}: {old.get(name, missing)!r} there, {new.get(name, missing)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, missing) != new.get(name, missing)
    ]
    if differences:
        raise UserError(
            f"--workdir: {str(workdir)!r} holds a run with another configuration ({'; '.join(differences)}); "
            "use the same configuration to go on, or another directory"
        )
