"""A recording of what the devices do in some steps, for TensorBoard or Perfetto."""

from __future__ import annotations

import pathlib
from types import TracebackType
from typing import Any

import jax
from absl import logging

from archirf_jax.errors import UserError

FOLDER = "profile"


def parse(text: str) -> tuple[int, int]:
    """ "100..110" -> (100, 110).

    Raises:
        UserError: not two steps.
    """
    first, dots, last = text.partition("..")
    if not (dots and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError("profile", text, "is not a range of steps such as 100..110")
    return int(first), int(last)


class Profile:
    """Context manager; records the steps first..last into `profile/` of a run directory, nothing without them."""

    def __init__(self, workdir: pathlib.Path, steps: tuple[int, int] | None = None) -> None:
        self._folder, self._steps, self._running = workdir / FOLDER, steps, False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def after(self, step: int) -> list[int]:
        """Numbers of steps done at which it begins or ends, above `step`."""
        return [end for end in (self._steps[0] - 1, self._steps[1]) if end > step] if self._steps else []

    def begin(self, step: int, state: Any) -> None:
        """Begin, when `state` is computed, if the first step to record comes after `step`."""
        if self._steps and step == self._steps[0] - 1:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def end(self, step: int, state: Any) -> None:
        """End, when `state` is computed, if `step` was the last to record."""
        if self._steps and step == self._steps[1]:
            jax.block_until_ready(state)
            self._end()

    def _end(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            logging.info("recorded: tensorboard --logdir=%s", self._folder)
