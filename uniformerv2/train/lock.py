"""A folder for one process at a time."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from uniformerv2.errors import RecipeError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of a file system, which must not stop a run


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, made for that and removed at the end.

    The system gives up the lock of a process that dies, in whatever way, so the file that it leaves behind means
    nothing. Processes that are forked from this one do not hold it.

    Raises:
        RecipeError: another process holds it, or this one does already.
    """
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = "another process"
        with suppress(OSError):
            holder = path.read_text(errors="replace") or holder
        raise RecipeError(
            f"{path.parent}: in use by {holder}; wait until it ends, stop it, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: a process that opened it meanwhile finds that it is gone
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock of a file, as far as the system and the file system tell; never on Windows.

    Reading is enough: a run may be another user's.
    """
    if fcntl is None or not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # what `FileLock` is made of; given up at once
        except OSError as error:
            return error.errno not in _NO_LOCKS
    return False
