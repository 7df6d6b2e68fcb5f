"""Linux options against orphan processes, effective even after `kill -9`; ignored elsewhere."""

import ctypes
import os
import sys

_PDEATHSIG, _CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def die_with_parent(signal_number: int, *, parent: int) -> None:
    """Asks the kernel to signal this process when its parent dies, or signals it if it has died.

    Args:
        parent: process id of the parent when this process started. It may be 1, as that of a launcher that is the
            first process of a container.

    Raises:
        OSError: the kernel refuses, so this process could outlive its parent.
    """
    _prctl(_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def adopt_orphans() -> None:
    """Makes this process the new parent of descendants that lose theirs.

    Raises:
        OSError: the kernel refuses.
    """
    _prctl(_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}) failed: {os.strerror(code)}")
