"""File locks by `flock`: the kernel releases them when their process ends, after a `kill -9` too.

`only_writer` admits one writer to a folder of results. Its lock file names the holder and exists only while it writes.
`held` and `pin` lock small files that stay.
"""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from pupujepa.errors import UserError

logger = logging.getLogger(__name__)

# hidden, because readers of a parquet folder take every visible file for data
LOCK_NAME = ".writer.lock"
_POLL_S = 0.2
# answers of file systems without locks; any other error says nothing about them
_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})


class FolderInUseError(UserError):
    """Another process is writing to the folder."""


@contextmanager
def held(lock: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock exclusively within the block; yields False if it is taken and `wait` is off."""
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
    """Returns a handle that shares the lock with other readers until it is closed or this process ends."""
    return _flock(lock, fcntl.LOCK_SH)


def can_lock(handle: int) -> bool:
    """Returns True if locks work on the file system of an open file."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def only_writer(
    folder: Path, *, wait_s: float = 0.0, name: str = LOCK_NAME, check: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Reserves a folder for this process, and makes it if it is missing.

    On a file system without locks it logs a warning and continues.

    Args:
        wait_s: time to wait for another writer, in seconds; 0 refuses at once.
        name: of the lock file, for a folder with writers of separate files.
        check: raises if the folder's content forbids this writer; called while it waits, and again with the lock.
            A check before the lock alone misses what another start writes in between.

    Raises:
        FolderInUseError: another process still writes there after `wait_s`; the message names it.
        UserError: a folder that cannot be made, written to or locked now.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f"the folder {folder} is not writable ({error}); choose another one") from error
    with _acquired(path, wait_s=wait_s, check=check) as lock:
        try:
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
            check()
            yield
        finally:
            if _is_at(path, lock):  # never remove the lock file of a later holder
                path.unlink()


def _acquired(path: Path, *, wait_s: float, check: Callable[[], object]) -> TextIO:
    """Returns the lock file, opened and locked."""
    deadline, told = time.monotonic() + wait_s, False
    while True:
        try:
            lock = os.fdopen(_flock(path, fcntl.LOCK_EX | fcntl.LOCK_NB), "r+")
        except BlockingIOError as error:
            check()
            holder = _holder(path)
            if time.monotonic() >= deadline:
                raise FolderInUseError(
                    f"{path.parent} is being written by {holder}; two writers would mix their files: wait for it, "
                    f"end it, or choose another folder"
                ) from error
            if not told:
                logger.warning("waiting up to %.0f s for %s to leave %s", wait_s, holder, path.parent)
                told = True
            time.sleep(_POLL_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise UserError(
                    f"{path} cannot be locked now ({error.strerror}, errno {error.errno}), so nothing was written; "
                    f"remedy that and run the same command again"
                ) from error
            logger.warning("%s cannot be locked (%s): make sure that only one job writes there", path.parent, error)
            return path.open("r+")
        else:
            if _is_at(path, lock):
                return lock
            lock.close()  # the holder removed the file after we opened it: this lock protects nothing


def _flock(lock: Path, operation: int) -> int:
    with ExitStack() as undo:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        undo.callback(os.close, handle)
        fcntl.flock(handle, operation)
        undo.pop_all()  # the caller closes the handle, which releases the lock
    return handle


def _holder(path: Path) -> str:
    """Returns the holder's name from the lock file, which may be gone by now."""
    try:
        return path.read_text() or "another process"
    except FileNotFoundError:
        return "another process"


def _is_at(path: Path, lock: TextIO) -> bool:
    """Returns True if `path` still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False
