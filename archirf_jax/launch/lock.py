"""One run at a time in a directory: a lock that the system releases when its holder dies, however that happens."""

from __future__ import annotations

import contextlib
import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Lock:
    """A run directory that is held.

    Attributes:
        workdir: the directory, by name.
        descriptor: of the open lock file in it.
    """

    workdir: pathlib.Path
    descriptor: int

    def still_ours(self) -> bool:
        """Whether the name still leads to the directory that is held, and not to another one or to nothing."""
        try:
            return os.path.samestat(os.stat(self.workdir / FILE), os.fstat(self.descriptor))
        except OSError:
            return False

    def check(self) -> None:
        """Raise a UserError if the directory was moved or removed: what is written now would go into another one."""
        if not self.still_ours():
            raise UserError(
                "workdir",
                str(self.workdir),
                "is no longer the directory that this run began in: it was moved or removed; move it back and give the "
                "same command again",
            )


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[Lock]:
    """Hold the directory while inside.

    Raises:
        UserError: another process holds it; says which.
        OSError: no lock can be made there, such as where it is a symbolic link.
    """
    descriptor = os.open(workdir / FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EACCES):
                logging.warning("%s cannot be locked (%s): see that no other run uses it", workdir, e.strerror)
                yield Lock(workdir, descriptor)
                return
            holder = file.read(300).strip() or "another process"
            advice = f"is in use by {holder}; wait for it, stop it, or use another directory"
            raise UserError("workdir", str(workdir), advice) from e
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield Lock(workdir, descriptor)
        file.truncate(0)
