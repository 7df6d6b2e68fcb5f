"""This process: its end, its allocator and its bond to the launcher.

It ends with os._exit, because interpreter teardown can abort: a C++ thread of a library gets SIGABRT about once in some
hundred runs of two ranks. The run is saved by then, but its exit code would make a scheduler start it again.
"""

import atexit
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import NoReturn

from pupujepa.orphans import die_with_parent


def end_with(main: Callable[[], int]) -> NoReturn:
    """Runs `main` and ends the process with its exit code; an uncaught error is shown, and gives 1.

    Interpreter teardown would wait for threads and child processes, which may never end.
    """
    with ExitStack() as stack:
        stack.push(_end_by_error)
        code = main()
    end_process(code)


def end_process(code: int) -> NoReturn:
    """Runs the exit handlers, flushes the output and ends the process."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # lost output does not change how the work ended
            stream.flush()
    os._exit(code)


def _end_by_error(
    kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
) -> None:
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):  # of argparse
        end_process(error.code or 0)
    if kind is not None and error is not None:
        sys.excepthook(kind, error, traceback)
        end_process(1)


# from malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1
_SET_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(environ: Mapping[str, str]) -> bool:
    """Makes malloc keep freed memory for this process, whose peak does not change.

    Returns False, and does nothing, if `environ` configures the allocator or the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in environ for name in _SET_BY_USER):
        return False
    # take every block from the heap, and never return the end of the heap
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def die_with_launcher(environ: Mapping[str, str]) -> None:
    """Asks Linux to kill this rank when torchrun dies.

    torchrun starts ranks in sessions of their own. If it is killed they train on as orphans, and block the run
    directory and the cores for the next start. Call this first, while the parent is still the launcher.
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        die_with_parent(signal.SIGKILL, parent=os.getppid())
