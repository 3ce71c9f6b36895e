"""The flags of a command, declared as data: nothing is defined in the process, so that many commands fit into one."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import types
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from archirf_jax.errors import UserError, nearest
from archirf_jax.files import expand
from archirf_jax.launch.fields import WORDS, Field, check_value
from archirf_jax.launch.overrides import load_file, override

Override = tuple[str, str]  # (dotted name of a field, text of its value)


class ConfigFile:
    """The kind of a flag that names a configuration file."""


class Texts:
    """The kind of a flag that may be given several times, each with any text."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag, --name=value.

    Attributes:
        name: without dashes.
        help: what it is, in one sentence.
        kind: str, int, float, bool, list (text with commas, given as a list of text), pathlib.Path ("~" is expanded),
            Texts (given as a list of text), ConfigFile (given as a ConfigDict, whose fields --name.FIELD=VALUE
            changes), or dict (--name.FIELD=VALUE alone, given as a list of overrides).
        default: the value where it is not given.
        low, high: smallest and largest number.
        choices: the texts that are allowed; () = all.
        required: whether it must be given.
        example: a value that a message about a missing flag shows.
        field: the dotted field of a configuration that it sets; an error of that field names this flag.
    """

    name: str
    help: str
    kind: type = str
    default: Any = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    required: bool = False
    example: str = ""
    field: str | None = None


CONFIG = Flag(
    "config",
    "configs/NAME.py or configs/NAME.py:VARIANT; --config.FIELD=VALUE changes a field of it",
    ConfigFile,
    required=True,
    example="configs/dit_rf.py",
)
WORKDIR = Flag("workdir", "run directory", pathlib.Path, required=True, example="runs/dit_rf")
JSON = Flag("json", "write the figures as one JSON object to standard output", bool, False)


def parse(declared: Sequence[Flag], argv: Sequence[str]) -> types.SimpleNamespace:
    """The values of flags by name, and `given`: those that were given, by name.

    Args:
        declared: the flags of the command.
        argv: arguments, without the program's name; --flagfile=FILE stands for the arguments in it.

    Raises:
        UserError: an unknown, missing or wrong flag, or a wrong field of the configuration.
    """
    values = _define(declared)
    groups = [flag.name for flag in declared if flag.kind in (ConfigFile, dict)]
    try:
        arguments, overrides = _split(values.read_flags_from_files(list(argv), force_gnu=False), groups)
        rest = values(["", *arguments])
    except flags.Error as e:
        raise _as_user_error(e, declared) from e
    except UnicodeDecodeError as e:
        raise UserError(f"--flagfile: the file is not UTF-8: {e}") from e
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; every argument is a flag, --name=value")
    found = types.SimpleNamespace(given={})
    for flag in declared:
        changes = [(field, text) for group, field, text in overrides if group == flag.name]
        setattr(found, flag.name, _value(flag, values, changes))
        if flag.kind is dict and changes or flag.kind is not dict and values[flag.name].present:
            found.given[flag.name] = getattr(found, flag.name)
    return found


def describe(declared: Sequence[Flag]) -> str:
    """One line a flag, for --help."""
    lines = []
    for flag in declared:
        name = f"--{flag.name}.FIELD" if flag.kind is dict else f"--{flag.name}"
        default = "" if flag.default is None or flag.kind is bool else f" (default: {flag.default})"
        choices = f": {', '.join(flag.choices)}" if flag.choices else ""
        lines.append(f"  {name:<22} {flag.help}{choices}{' (required)' if flag.required else default}")
    return "\n".join(lines)


def name_of(field: str, declared: Sequence[Flag]) -> str:
    """How a command calls a field: by the flag that sets it, or as a field of the configuration."""
    for flag in declared:
        if field == (flag.field or flag.name):
            return f"--{flag.name}"
    return f"config.{field}"


def _define(declared: Sequence[Flag]) -> flags.FlagValues:
    values = flags.FlagValues()
    define: dict[type, Callable[..., Any]] = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
        list: flags.DEFINE_list,
        Texts: flags.DEFINE_multi_string,
    }
    for flag in declared:
        if flag.kind is not dict:
            default = flag.default if flag.kind in define or flag.default is None else str(flag.default)
            make = define.get(flag.kind, flags.DEFINE_string)
            make(flag.name, default, flag.help, flag_values=values, required=flag.required)
    return values


def _value(flag: Flag, values: flags.FlagValues, changes: list[Override]) -> Any:
    if flag.kind is dict:
        return [(f"{flag.name}.{field}", text) for field, text in changes]
    value, field = values[flag.name].value, flag.field or flag.name
    if value is None:
        return None
    if flag.kind is pathlib.Path:
        return expand(value, field)
    if flag.kind is ConfigFile:
        config = load_file(value)
        override(config, changes)
        return config.lock()
    if flag.kind in (int, float):
        check_value(field, value, Field(flag.kind, flag.low, flag.high))
    if flag.choices and value not in flag.choices:
        raise UserError(field, value, f"is not one of {', '.join(flag.choices)}{nearest(value, flag.choices)}")
    return value


def _split(argv: list[str], groups: Sequence[str]) -> tuple[list[str], list[tuple[str, str, str]]]:
    """(other arguments, (group, field, text) of each --GROUP.FIELD=TEXT, --GROUP.FIELD TEXT and --GROUP.FIELD)."""
    pattern = re.compile(rf"--?({'|'.join(map(re.escape, groups)) or '(?!)'})\.([^=]*)(=?)(.*)", re.DOTALL)
    rest: list[str] = []
    overrides = []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        if match := pattern.fullmatch(argument):
            group, field, equals, text = match.groups()
            if not equals:
                # A field without a value is switched on.
                text = waiting.pop(0) if waiting and not re.match(r"-[^\d.]", waiting[0]) else "true"
            overrides.append((group, field, text))
        else:
            rest.append(argument)
    return rest, overrides


def _as_user_error(error: flags.Error, declared: Sequence[Flag]) -> UserError:
    """absl's error about a flag as a UserError with the flag's field."""
    said = " ".join(str(error).split()).removeprefix("ERROR:: ")
    about = re.match(r"flag --(\w+)=(.*?): (.*)", said)
    flag = next((flag for flag in declared if about and flag.name == about[1]), None)
    if about is None or flag is None:
        return UserError(said)
    if about[2] != "None":
        return UserError(flag.field or flag.name, about[2], f"is not {WORDS.get(flag.kind, 'text')}")
    example = f"; give one, such as --{flag.name}={flag.example}" if flag.example else ""
    return UserError(flag.field or flag.name, message=f"is missing{example}")
