"""Stopping on request: a signal sets a flag, all ranks agree on it at the next step, save, and exit with code 85.

A preempted SLURM job that saves and exits 0 counts as COMPLETED and never runs again. Code 85 is listed under
RequeueExit in slurm.conf, or the batch script calls `scontrol requeue` when it sees it.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType

EXIT_CODE_REQUEUE = 85
# SIGUSR2 comes ahead of the time limit (`#SBATCH --signal=USR2@120`), SIGTERM with preemption; SIGUSR1 is NCCL's
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_INIT = 1


def die_with_launcher(environ: Mapping[str, str]) -> None:
    """Asks Linux to kill this rank when torchrun dies.

    torchrun starts ranks in sessions of their own. A torchrun that is killed leaves them training as orphans, which
    hold the run directory and the cores against the next start of the same command.
    """
    if "TORCHELASTIC_RUN_ID" not in environ or not sys.platform.startswith("linux"):
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() == _INIT:
        # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)


class StopRequest:
    """A flag that the stop signals set, while this object is entered as a context manager.

    The handlers only set the flag: between two steps is the one moment when all ranks can save the same step.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = STOP_SIGNALS):
        self.received: signal.Signals | None = None
        self._signals = signals
        self._previous: dict[signal.Signals, object] = {}
        self._pid = os.getpid()

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._receive) for number in self._signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # a forked data worker inherits the handler; the flag would not reach us and it could never be terminated
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number)
