"""A folder for one process at a time."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uniformerv2.errors import RecipeError

try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None  # type: ignore[assignment]

_held: set[Path] = set()  # by this process, which the system would let lock a file twice


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, made for that and removed at the end.

    The system gives up the lock of a process that dies, in whatever way, so the file that such a one leaves behind
    means nothing. Processes that are forked from this one do not hold it.

    Raises:
        RecipeError: another process holds it.
    """
    path = path.absolute()
    handle = _acquire(path)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)  # before it is given up, so that nobody locks a file which then goes
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock of a file, as far as the system and the file system tell."""
    path = path.absolute()
    if path in _held:
        return True
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _lock(handle, shared=True)
    finally:
        os.close(handle)  # gives it up at once


def _acquire(path: Path) -> int:
    if path in _held:  # not even opened: closing any handle of a file gives up this process's lock on it
        raise _in_use(path, "this process")
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(handle):
            holder = os.read(handle, 1000).decode(errors="replace")
            os.close(handle)
            raise _in_use(path, holder or "another process")
        if _is_at(handle, path):
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return handle
        os.close(handle)  # its holder removed it in between


def _in_use(path: Path, holder: str) -> RecipeError:
    return RecipeError(f"{path.parent}: in use by {holder}; wait until it ends, stop it, or choose another folder")


def _lock(handle: int, *, shared: bool = False) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # a file system without locks must not stop a run
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
