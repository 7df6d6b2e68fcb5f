"""The end of a process whose work is done: at once, past the interpreter's own.

While the interpreter takes itself apart, threads of libraries still run, and one of them that is in C++ then takes the
process down with SIGABRT, about once in some hundred runs of two ranks. The run is finished and saved by then, but its
exit code says that it failed, and a scheduler starts it again.
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
    """Does what was registered to be done at the exit, writes out what was printed, and ends the process."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# of malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1
_SET_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(environ: Mapping[str, str]) -> bool:
    """Lets this process keep what it frees; the process's peak stays what it is.

    Args:
        environ: settings of the allocator that are made there are left as they are.

    Returns:
        Whether it does: C libraries other than glibc cannot be asked, and keep their own ways.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in environ for name in _SET_BY_USER):
        return False
    # every block from the heap, and the heap's end never given back
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


_INIT = 1


def die_with_launcher(environ: Mapping[str, str]) -> None:
    """Asks Linux to kill this rank when torchrun dies.

    torchrun starts ranks in sessions of their own. A torchrun that is killed leaves them training as orphans, which
    hold the run directory and the cores against the next start of the same command.
    """
    if "TORCHELASTIC_RUN_ID" not in environ or not sys.platform.startswith("linux"):
        return
    die_with_parent(signal.SIGKILL)
    if os.getppid() == _INIT:
        # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)
