"""Linux options against orphan processes, effective even after `kill -9`; ignored elsewhere."""

import ctypes
import os
import sys

_PDEATHSIG, _CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def die_with_parent(signal_number: int) -> None:
    """Asks the kernel to signal this process when its parent dies; a parent that died before sends none.

    Raises:
        OSError: the kernel refuses, so this process could outlive its parent.
    """
    _prctl(_PDEATHSIG, signal_number)


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
