"""The end of a process whose work is done: at once, past the interpreter's own.

While the interpreter takes itself apart, threads of libraries still run, and one of them that is in C++ then takes the
process down with SIGABRT, about once in some hundred runs of two ranks. The run is finished and saved by then, but its
exit code says that it failed, and a scheduler starts it again.
"""

import atexit
import os
import sys
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """Does what was registered to be done at the exit, writes out what was printed, and ends the process."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
