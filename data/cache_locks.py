"""Locks that die with the process that holds them: `flock` on small files, which a `kill -9` cannot leave behind."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


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


def _flock(lock: Path, operation: int) -> int:
    with ExitStack() as undo:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        undo.callback(os.close, handle)
        fcntl.flock(handle, operation)
        undo.pop_all()
    return handle
