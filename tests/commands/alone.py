"""Any command inside this process, with its own flags and nobody else's, as in a process of its own.

Commands have flags of the same names, which absl lets only one module of a process define.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn
from unittest import mock

import grain  # noqa: F401  first: flags that come into being inside a flagsaver end with it
import pytest
from absl import flags
from absl.testing import flagsaver

from archirf_jax.errors import UserError
from archirf_jax.launch import cli

FLAGS = flags.FLAGS
Defined = dict[str, list[Any]]  # module -> its flags


class Command:
    """A command by the name of its module, which nothing else may have imported; called with its arguments.

    Raises:
        UserError, flags.Error: what a person would read in one line.
    """

    def __init__(self, name: str) -> None:
        with _alone({}):
            self.module = importlib.import_module(name)
            self._flags = _defined()
        assert name in self._flags, f"{name} was imported before"

    def __call__(self, *arguments: str) -> None:
        with _alone(self._flags), flagsaver.flagsaver():
            assert FLAGS(["command", *arguments]) == ["command"]
            self.module.main([])

    def answer(self, *arguments: str) -> str:
        """The line that a process of its own would end with, flags that cannot be read included."""
        command = ["command", *arguments]
        with _alone(self._flags), flagsaver.flagsaver(), mock.patch.object(sys, "argv", command):
            with mock.patch.object(cli, "_fail", _refuse), pytest.raises((UserError, OSError)) as refused:
                cli._parse(command)
                self.module.main([])
        return " ".join(str(refused.value).split())

    def complaint(self, *arguments: str) -> str:
        """The one line that wrong arguments are answered with."""
        with pytest.raises((UserError, flags.Error, OSError)) as refused:
            self(*arguments)
        message = str(refused.value)
        assert "\n" not in message and message, message
        return message


@functools.cache
def command(name: str) -> Command:
    """The one command of this name, for tests in several files."""
    return Command(name)


def _refuse(message: str) -> NoReturn:
    raise UserError(message)


def _defined() -> Defined:
    """The flags of commands, by module."""
    return {name: [*each] for name, each in FLAGS.flags_by_module_dict().items() if name.startswith("archirf_jax.")}


@contextlib.contextmanager
def _alone(mine: Defined) -> Iterator[None]:
    """These flags in place of those that commands have defined so far."""
    others = _defined()
    _remove(others)
    _add(mine)
    try:
        yield
    finally:
        _remove(_defined())
        _add(others)


def _remove(defined: Defined) -> None:
    for flag in [flag for each in defined.values() for flag in each]:
        delattr(FLAGS, flag.name)


def _add(defined: Defined) -> None:
    for module, each in defined.items():
        for flag in each:
            FLAGS[flag.name] = flag
            FLAGS.register_flag_by_module(module, flag)
