"""Locks on files, of the operating system: they end with the process that holds them, however it ends, so that nothing of a dead process
has to be taken over or removed.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def lock(file: Any, how: str, *, wait: bool) -> None:
    """Locks an open file, `"alone"` or `"shared"` with others. Of a file that this one has locked already it changes the kind.

    **Raises:** `OSError` if somebody else holds it and this one is not to wait.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: two that work on one thing then write the same twice
        return
    try:
        fcntl.flock(file, {"alone": fcntl.LOCK_EX, "shared": fcntl.LOCK_SH}[how] | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):  # nor on some file systems
            raise


@contextlib.contextmanager
def writing_alone(path: Path) -> Iterator[None]:
    """Holds the file at `path` for one that writes it, over several runs: it is made if it is not there, and removed at the end if it is
    empty still. Whoever holds it may rename it to where it belongs.

    **Raises:** `BlockingIOError` if another process, or another call of this one, holds it.
    """
    if os.name == "nt":  # where what is open cannot be renamed
        path.touch()
        yield
        return
    while True:
        with path.open("ab") as file:
            lock(file, "alone", wait=False)
            if not _is_at(file, path):
                continue  # whoever had it has finished, and renamed it, between these two lines
            try:
                yield
            finally:
                if _is_at(file, path) and not path.stat().st_size:
                    path.unlink()
            return


def _is_at(file: Any, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
