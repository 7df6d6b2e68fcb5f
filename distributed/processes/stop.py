"""Stopping on request: a signal, or the end of the job's time, is noted; all ranks agree on it at the next step, save,
and exit with code 85.

A preempted SLURM job that saves and exits 0 counts as COMPLETED and never runs again. Code 85 is listed under
RequeueExit in slurm.conf, or the batch script calls `scontrol requeue` when it sees it.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType

from pupujepa.errors import UserError

EXIT_CODE_REQUEUE = 85
# SIGUSR2 comes ahead of the time limit (`#SBATCH --signal=USR2@120`), SIGTERM with preemption; SIGUSR1 is NCCL's
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
# ahead of the end of the job's time, beside what steps and saves have taken so far
NOTICE_S = 60.0
_END_OF_JOB = "SLURM_JOB_END_TIME"
_DURATION = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")


def end_of_time_s(environ: Mapping[str, str], *, time_limit: str | None, now_s: float) -> float | None:
    """Returns when this process has to be gone, in seconds since 1970: by its time limit, or its job's; the earlier.

    Args:
        environ: SLURM's, which tells the end of the job; slurm/train.sbatch asks for it where an older SLURM does not.
        time_limit: from now, such as 3:55:00; None for none.

    Raises:
        UserError: a time that cannot be read.
    """
    ends = [now_s + duration_s(time_limit)] if time_limit else []
    if environ.get(_END_OF_JOB):
        if not environ[_END_OF_JOB].isdecimal():
            raise UserError(
                f"{_END_OF_JOB}={environ[_END_OF_JOB]!r} is no number of seconds since 1970, so the run would not stop "
                f"in time; unset it, or correct it"
            )
        ends.append(float(environ[_END_OF_JOB]))
    return min(ends, default=None)


def duration_s(text: str) -> float:
    """Reads [[days-]hours:]minutes:seconds, as SLURM writes it.

    Raises:
        UserError: something else; a bare number too, which means minutes to some and seconds to others.
    """
    match = _DURATION.fullmatch(text)
    if not match:
        raise UserError(f"the time limit {text!r} cannot be read; write hours:minutes:seconds, such as 3:55:00")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


class StopRequest:
    """A flag that the stop signals set, while this object is entered as a context manager, or the clock does.

    The handlers only set the flag: between two steps is the one moment when all ranks can save the same step.

    Args:
        ends_s: when this process has to be gone, in seconds since 1970.
    """

    def __init__(
        self,
        signals: tuple[signal.Signals, ...] = STOP_SIGNALS,
        *,
        ends_s: float | None = None,
    ):
        self._ends_s = ends_s
        self.received: signal.Signals | None = None
        self._signals = signals
        self._previous: dict[signal.Signals, object] = {}
        self._pid = os.getpid()

    def requested(self, needed_s: float, *, clock: Callable[[], float] = time.time) -> bool:
        """Whether it is time to stop: a signal came, or less than NOTICE_S and `needed_s` are left."""
        return self.received is not None or (self._ends_s is not None and clock() + needed_s + NOTICE_S >= self._ends_s)

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
