"""Locks that die with the process that holds them: the kernel's `flock`, which a `kill -9` cannot leave behind.

`only_writer` keeps a folder of results to one writer, whichever room writes there. Its lock file names the holder and
exists only while somebody writes. `held` and `pin` lock small files that stay.
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from pupujepa.errors import UserError

logger = logging.getLogger(__name__)

# hidden: readers of a folder of parquet take every other file for data
LOCK_NAME = ".writer.lock"
_POLL_S = 0.2


class FolderInUseError(UserError):
    """A folder in which another process writes."""


@contextmanager
def held(lock: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock exclusively within the block; without `wait` the block learns whether it was free."""
    try:
        handle = _flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(handle)


def pin(lock: Path) -> int:
    """Returns a handle that shares the lock with other readers until it is closed, or this process is gone."""
    return _flock(lock, fcntl.LOCK_SH)


def can_lock(handle: int) -> bool:
    """Returns True if locks work on the file system of an open file."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def only_writer(folder: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Holds a folder, which is made where it is missing, for this process.

    On a file system without locks this says so and goes on.

    Args:
        wait_s: how long to wait for another writer to end, in seconds; 0 refuses at once.

    Raises:
        FolderInUseError: another process, which is named, still writes there after `wait_s`.
        UserError: a folder that cannot be made, or not be written to.
    """
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f"nothing can be written to the folder {folder} ({error}); choose another one") from error
    with _acquired(path, wait_s=wait_s) as lock:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield
        finally:
            if _is_at(path, lock):
                path.unlink()


def _acquired(path: Path, *, wait_s: float) -> TextIO:
    """Returns the lock file, opened and locked."""
    deadline, told = time.monotonic() + wait_s, False
    while True:
        try:
            lock = os.fdopen(_flock(path, fcntl.LOCK_EX | fcntl.LOCK_NB), "r+")
        except BlockingIOError as error:
            holder = _holder(path)
            if time.monotonic() >= deadline:
                raise FolderInUseError(
                    f"{path.parent} is being written by {holder}; two writers would mix their files: wait for that "
                    f"one, end it, or choose another folder"
                ) from error
            if not told:
                logger.warning("waiting up to %.0f s for %s to leave %s", wait_s, holder, path.parent)
                told = True
            time.sleep(_POLL_S)
        except OSError as error:
            logger.warning("%s cannot be locked (%s): make sure that only one job writes there", path.parent, error)
            return path.open("r+")
        else:
            if _is_at(path, lock):
                return lock
            lock.close()  # its holder took the file away between our opening it and locking it


def _flock(lock: Path, operation: int) -> int:
    with ExitStack() as undo:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        undo.callback(os.close, handle)
        fcntl.flock(handle, operation)
        undo.pop_all()
    return handle


def _holder(path: Path) -> str:
    """Returns who holds a folder, by its lock file, which may be gone by now."""
    try:
        return path.read_text() or "another process"
    except FileNotFoundError:
        return "another process"


def _is_at(path: Path, lock: TextIO) -> bool:
    """Whether the open file is still the one under its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False
