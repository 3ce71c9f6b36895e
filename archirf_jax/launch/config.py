"""The configuration of a run directory: saved, read back, compared with the one that a run is to go on with."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from absl import logging

from archirf_jax import untrusted
from archirf_jax.data.fields import LATENTS
from archirf_jax.data.fields.text_states import KIND
from archirf_jax.errors import UserError
from archirf_jax.files import atomic_write, check_run_directory
from archirf_jax.launch.fields import FIELDS, check_saved, leaves
from archirf_jax.launch.lock import Lock, lock
from archirf_jax.training.start import had_checkpoints

FILE = "config.json"
IDENTITY = "identity"
DIGEST = f"{IDENTITY}.data_digest"
# Fields that may change while a run goes on: where it is computed, and what is reported and kept of it. Frozen runs
# are copied into the run directory, and their digests are part of the identity.
FREE = (
    *("mesh.", "accumulation", "log.", "checkpoint.", "guard.", "data.dir", "data.device_cache_mib"),
    *("steps_per_dispatch", "frozen.", "sample.hoist"),
)
ENDLESS = ("constant", "inverse_sqrt", "geometric")  # schedules that do not depend on where the run ends
ABSENT = "(absent)"
LISTED, LONGEST = 8, 60  # differences in a message, and characters of a value there


def save(config: Any, workdir: pathlib.Path, identity: Mapping[str, Any] | None = None) -> None:
    """Write config.json, whole or not at all, unless it is there already.

    Args:
        config: a ConfigDict.
        workdir: the run directory.
        identity: what decides the run and is not in its configuration, such as the names of the classes.
    """
    values = config.to_dict() | ({IDENTITY: dict(identity)} if identity else {})
    text, path = json.dumps(values, indent=2) + "\n", workdir / FILE
    if not path.is_file() or path.read_text() != text:
        atomic_write(path, text)


def load(workdir: pathlib.Path, field: str = "workdir") -> ml_collections.ConfigDict:
    """The configuration of a run, locked; `identity` is a group of it where the run has one.

    Args:
        workdir: the run directory.
        field: what the directory is called in errors.

    Raises:
        UserError: there is no run, or its config.json is damaged, lacks a field or holds a wrong one.
    """
    path = workdir / FILE
    if not path.exists():
        advice = f"is not a run (it has no {FILE}); train one by python -m archirf_jax.main"
        raise UserError(field, str(workdir), advice)
    try:
        values = untrusted.read_json(path)
        if not isinstance(values, dict):
            raise ValueError("it is not a group of fields")
        check_saved(values)
        return ml_collections.ConfigDict(values).lock()
    except ValueError as e:
        raise UserError(field, str(path), f"is damaged: {' '.join(str(e).split())[:300]}") from e


@contextlib.contextmanager
def claimed(
    config: Any, workdir: pathlib.Path, changing: bool = False, identity: Mapping[str, Any] | None = None
) -> Iterator[Lock]:
    """Hold a run directory for this run alone; save the configuration in a new one, compare it in an old one.

    Args:
        config: of the run.
        workdir: made, with its parents.
        changing: whether a run that began with another configuration or identity goes on with this one.
        identity: what decides the run and is not in its configuration: JSON values by name.

    Yields:
        The lock, whose `check` says whether the directory is still this run's.

    Raises:
        UserError: the directory is in use, cannot hold a run, or belongs to another run; lists the differences.
    """
    check_run_directory(workdir, "workdir")
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(lock(workdir))
        except OSError as e:
            raise UserError("workdir", str(workdir), f"cannot be a run directory: {e.strerror or e}") from e
        if found := differences(config, workdir, identity):
            if not changing:
                raise UserError(
                    "workdir",
                    str(workdir),
                    f"holds a run with another configuration ({found}); use the same one to go on, or --change_config "
                    "to go on with this one, or another directory",
                )
            logging.warning("from here on with another configuration: %s", found)
        save(config, workdir, identity)
        yield held


def differences(config: Any, workdir: pathlib.Path, identity: Mapping[str, Any] | None = None) -> str:
    """The fields of a run that differ from the directory's, with both values; "" if none does.

    A directory in which nothing was saved does not belong to a run yet: a first start that failed may be corrected.
    """
    saved = any(path for folder in ("checkpoints", "samples") for path in (workdir / folder).glob("[0-9]*"))
    if not (saved or had_checkpoints(workdir)):
        return ""
    if not (workdir / FILE).exists():
        return f"unknown: checkpoints are there and {FILE} is not"
    now = config.to_dict() | {IDENTITY: dict(identity or {})}
    later = {name: None for name, field in FIELDS.items() if field.later}
    old, new = later | flat(load(workdir).to_dict()), later | flat(json.loads(json.dumps(now)))
    free = (*FREE, "steps") if config.schedule.name in ENDLESS else FREE
    found = [
        f"{name}: {_shown(old.get(name, ABSENT))} there, {_shown(new.get(name, ABSENT))} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, ABSENT) != new.get(name, ABSENT) and not name.startswith(free) and not _moved(name, old, new)
    ]
    more = [f"and {len(found) - LISTED} more"] if len(found) > LISTED else []
    return "; ".join(found[:LISTED] + more)


def _moved(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a field is the place of a cache of latents or texts, and both places hold what has the same digest."""
    if DIGEST not in old or old[DIGEST] != new.get(DIGEST):
        return False
    if name == "data.name":
        return all(str(values.get(name)).startswith(LATENTS) for values in (old, new))
    field, _, option = name.rpartition(".")
    kinds = {values.get(f"{field}.name") for values in (old, new)}
    return field.startswith("data.fields.") and option == "cache" and kinds == {KIND}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by dotted name; elements of lists of text have their number, so that the one that differs is named."""
    flat: dict[str, Any] = {}
    for name, value in leaves(values):
        if isinstance(value, list) and any(isinstance(item, str) for item in value):
            flat |= {f"{name}[{i}]": item for i, item in enumerate(value)}
        else:
            flat[name] = value
    return flat
