"""Memory that a training step on a CPU has freed is kept for the next step.

By default glibc gives large blocks back to the system when they are freed, and asks for them again in the next step,
every page cleared anew: five to nine thousand page faults a step of the demo, a tenth of its time.
"""

import ctypes
from collections.abc import Mapping

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
