"""One run at a time in a directory: a lock that the system releases when its holder dies, however that happens."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from absl import logging

from archirf_jax.errors import UserError

FILE = "lock"


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Hold the directory while inside.

    Raises:
        UserError: another process holds it; says which.
    """
    with (workdir / FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EACCES):
                logging.warning("%s cannot be locked (%s): see that no other run uses it", workdir, e.strerror)
                yield
                return
            file.seek(0)
            raise UserError(
                f"--workdir: {str(workdir)!r} is in use by {file.read().strip() or 'another process'}; "
                "wait for it, stop it, or use another directory"
            ) from e
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield
        file.truncate(0)
