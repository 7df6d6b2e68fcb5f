"""One writer at a time for a folder of results, whichever room writes them.

The lock is the kernel's (flock) on a file in the folder, so it is free however its holder ended, and the file tells who
holds it. It lies there only while somebody writes.
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read() or "another process"
            lock.close()
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
            return lock
        else:
            if _is_at(path, lock):
                return lock
            lock.close()  # its holder took the file away between our opening it and locking it


def _is_at(path: Path, lock: TextIO) -> bool:
    """Whether the open file is still the one under its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False
