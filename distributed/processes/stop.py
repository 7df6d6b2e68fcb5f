"""Stop requests: all ranks save the same step and exit with code 85.

They follow a signal, or the approaching end of the job's time. A preempted SLURM job that exits 0 counts as COMPLETED
and never runs again. So list code 85 under RequeueExit in slurm.conf, or let the batch script call `scontrol requeue`
on it.
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
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
# of a terminal; nohup, and a script that starts a job with `&`, ask to ignore them
_OF_TERMINAL = (signal.SIGINT, signal.SIGHUP)
# spare time before the end of the job, beyond the measured steps and saves
NOTICE_S = 60.0
_END_OF_JOB = "SLURM_JOB_END_TIME"
_DURATION = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")


def end_of_time_s(environ: Mapping[str, str], *, time_limit: str | None, now_s: float) -> float | None:
    """Returns the earlier end of its time limit and its job, in seconds since 1970; None without either.

    Args:
        environ: holds the end of the SLURM job; for an older SLURM, slurm/train.sbatch sets it.
        time_limit: from now, such as 3:55:00.

    Raises:
        UserError: a time cannot be read.
    """
    ends = [now_s + duration_s(time_limit)] if time_limit else []
    if environ.get(_END_OF_JOB):
        if not environ[_END_OF_JOB].isdecimal():
            raise UserError(
                f"{_END_OF_JOB}={environ[_END_OF_JOB]!r} is not a number of seconds since 1970, so the run would not "
                f"stop in time; correct or unset it"
            )
        ends.append(float(environ[_END_OF_JOB]))
    return min(ends, default=None)


def duration_s(text: str) -> float:
    """Reads [[days-]hours:]minutes:seconds, as SLURM writes it.

    Raises:
        UserError: any other text, also a bare number, which could mean minutes or seconds.
    """
    match = _DURATION.fullmatch(text)
    if not match:
        raise UserError(f"the time limit {text!r} cannot be read; write hours:minutes:seconds, such as 3:55:00")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


class StopRequest:
    """A context manager in which stop signals, and the end of the time, set a flag.

    The handlers only set the flag, because all ranks can save the same step only between two steps. A second Ctrl-C
    ends the process at once, without saving.

    Args:
        ends_s: the end of this process's time, in seconds since 1970.
    """

    def __init__(self, *, ends_s: float | None = None):
        self._ends_s = ends_s
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}
        self._pid = os.getpid()

    def requested(self, needed_s: float, *, clock: Callable[[], float] = time.time) -> bool:
        """Returns True after a signal, or when less than `needed_s` + NOTICE_S are left."""
        return self.received is not None or (self._ends_s is not None and clock() + needed_s + NOTICE_S >= self._ends_s)

    def __enter__(self) -> "StopRequest":
        ignored = {number for number in _OF_TERMINAL if signal.getsignal(number) is signal.SIG_IGN}
        self._previous = {n: signal.signal(n, self._receive) for n in STOP_SIGNALS if n not in ignored}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # a forked data worker inherits this handler; with a flag alone, it could never be terminated
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            # by the kernel: the main thread may be stuck
            signal.signal(number, signal.SIG_DFL)
