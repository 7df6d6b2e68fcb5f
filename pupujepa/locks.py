"""File locks by `flock`: the kernel releases them when their process ends, after a `kill -9` too.

`held` has a file of its own, which names the holder and exists only while it is held; `only_writer` holds such a file
in a folder of results. `open_locked` locks a file of data. Every wait has a limit, because a suspended process keeps
its locks.
"""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pupujepa.errors import UserError

logger = logging.getLogger(__name__)

# hidden, because readers of a parquet folder take every visible file for data
LOCK_NAME = ".writer.lock"
_FIRST_POLL_S, _POLL_S = 0.001, 0.2
# answers of file systems without locks; any other error says nothing about them
_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})


class FolderInUseError(UserError):
    """Another process is writing to the folder."""


class LockTakenError(UserError):
    """Another process holds a lock.

    Args:
        holder: its process id and host, as far as known.
    """

    def __init__(self, lock: Path, holder: str):
        super().__init__(f"{lock} is held by {holder}; wait for it, or end it")
        self.holder = holder


@contextmanager
def held(lock: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Holds a lock file within the block; it names this process and exists only that long.

    Raises:
        LockTakenError: another process still holds it after `wait_s`.
    """
    with _named(lock, _acquired(lock, wait_s=wait_s)):
        yield


def open_locked(path: Path, *, shared: bool) -> int:
    """Opens a file and locks it until the handle is closed or this process ends; does not wait.

    Raises:
        BlockingIOError: another handle locks it, and not both are shared.
    """
    return _flock(path, os.O_RDONLY, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


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
    with _named(path, _acquired_or_unlocked(path, wait_s=wait_s, check=check)):
        check()
        yield


def _acquired_or_unlocked(path: Path, *, wait_s: float, check: Callable[[], object]) -> int:
    """Returns the lock file of a folder, locked if the file system can; says so if it has to wait."""
    try:
        try:
            return _acquired(path, wait_s=0.0)
        except LockTakenError as error:
            check()
            if wait_s > 0:
                logger.warning("waiting up to %.0f s for %s to leave %s", wait_s, error.holder, path.parent)
            return _acquired(path, wait_s=wait_s, check=check)
    except LockTakenError as error:
        raise FolderInUseError(
            f"{path.parent} is being written by {error.holder}; two writers would mix their files: wait for it, "
            f"end it, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(
                f"{path} cannot be locked now ({error.strerror}, errno {error.errno}), so nothing was written; "
                f"remedy that and run the same command again"
            ) from error
        logger.warning("%s cannot be locked (%s): make sure that only one job writes there", path.parent, error)
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _acquired(path: Path, *, wait_s: float, check: Callable[[], object] = lambda: None) -> int:
    """Returns the lock file, opened and locked; calls `check` while it waits.

    Raises:
        LockTakenError: another process still holds it after `wait_s`.
    """
    deadline, pause_s = time.monotonic() + wait_s, _FIRST_POLL_S
    while True:
        try:
            lock = _flock(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise LockTakenError(path, _holder(path)) from error
            check()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S)
        else:
            if _is_at(path, lock):
                return lock
            os.close(lock)  # the holder removed the file after we opened it: this lock protects nothing


@contextmanager
def _named(path: Path, lock: int) -> Iterator[None]:
    """Writes this process's name into its lock file; removes and closes the file after the block."""
    with suppress(OSError):  # the lock holds on a full disk too
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
    try:
        yield
    finally:
        with suppress(OSError):  # a folder that became read-only must not hide the error that ended the block
            if _is_at(path, lock):  # never remove the lock file of a later holder
                path.unlink()
        os.close(lock)


def _flock(path: Path, flags: int, operation: int) -> int:
    with ExitStack() as undo:
        handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
        undo.callback(os.close, handle)
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
        undo.pop_all()  # the caller closes the handle, which releases the lock
    return handle


def _holder(path: Path) -> str:
    """Returns the holder's name from the lock file, which may be gone by now."""
    try:
        return path.read_text() or "another process"
    except FileNotFoundError:
        return "another process"


def _is_at(path: Path, lock: int) -> bool:
    """Returns True if `path` still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False
