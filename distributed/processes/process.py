"""This process: its end, its allocator and its bond to the launcher.

It ends with os._exit, because interpreter teardown can abort: a C++ thread of a library gets SIGABRT about once in some
hundred runs of two ranks. The run is saved by then, but its exit code would make a scheduler start it again.
"""

import atexit
import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from typing import NoReturn

from pupujepa.orphans import die_with_parent


def end_process(code: int) -> NoReturn:
    """Runs the exit handlers, flushes the output and ends the process."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# from malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1
_INIT = 1  # the process that adopts orphans
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
    directory and the cores for the next start.
    """
    if "TORCHELASTIC_RUN_ID" not in environ or not sys.platform.startswith("linux"):
        return
    die_with_parent(signal.SIGKILL)
    if os.getppid() == _INIT:
        # the launcher died before the request
        os.kill(os.getpid(), signal.SIGKILL)
