"""What the package says while it works: plain lines on standard error, without those of other libraries."""

from __future__ import annotations

import functools
import logging as std_logging
import pathlib

from absl import flags, logging

from archirf_jax.errors import printable

PACKAGE = str(pathlib.Path(__file__).resolve().parents[1])


class Plain(std_logging.Formatter):
    """Messages whose control characters, such as those in the names of files, are shown as escapes."""

    def format(self, record: std_logging.LogRecord) -> str:
        """The message."""
        return printable(super().format(record))


@functools.cache
def set_up() -> None:
    """Print this package's log messages without a prefix and hide those of other libraries; once a process."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # the flags that libraries define keep their defaults
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.addFilter(lambda record: record.pathname.startswith(PACKAGE))
    handler.setFormatter(Plain("%(message)s"))
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold(logging.INFO)
