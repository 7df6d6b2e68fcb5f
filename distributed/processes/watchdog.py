"""The watchdog: a thread of every rank that writes heartbeats and ends the rank when it stalls.

Ranks wait for each other in every collective. So one lost or stalled rank stops all, and their timeouts do not name it.
A stalled rank prints the stacks of its threads and its position. A rank whose collective failed reads the heartbeats
and names the lost rank. Both end at once with exit code 86: without all ranks nothing can be saved, and leaving in
order could hang. When a rank fails by an error of its own, the others name it and end within seconds with its code.
"""

import ctypes
import faulthandler
import logging
import math
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from distributed.processes.collectives import from_first
from distributed.processes.heartbeats import Heartbeats, RankFailure, Sign
from distributed.processes.topology import Topology
from pupujepa.errors import EXIT_CODE_LOST


@dataclass(frozen=True)
class StallLimits:
    """Seconds that a rank may stay in one place: in steps after the first, and elsewhere.

    Elsewhere is the start, a checkpoint and so on.
    """

    step_s: float
    elsewhere_s: float


EXIT_CODE_CRASH = 1
# in the order of a step: at the same step, the rank in the earlier place is behind
PLACES = (
    "the start",
    "the wait for data",
    "the forward pass",
    "the backward pass and the update",
    "the diagnostics",
    "the probes",
    "the checkpoint",
    "the end of the run",
)
START, DATA, FORWARD, BACKWARD, DIAGNOSTICS, PROBES, CHECKPOINT, END = PLACES
STEP_PLACES = (DATA, FORWARD, BACKWARD)
_STDERR = 2
_SHOWN_RANKS = 8
# after a failure: the longest wait until the others notice, and the time in which each rank may leave in order
_LOOK_S, _GRACE_S = 2.0, 5.0
# gloo has no class of errors for a lost connection
_OF_CONNECTION = re.compile(r"gloo|nccl|connection|peer|socket|broken pipe|timed? ?out", re.IGNORECASE)

logger = logging.getLogger(__name__)


class Whereabouts:
    """The position of this rank's main thread, for its watchdog.

    Attributes:
        error: by which this rank fails, if it does.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._not_run_s = clock, 0.0
        self._now = (START, 0, clock())
        self._first_step: int | None = None
        self.error: BaseException | None = None

    def at(self, place: str, step: int) -> None:
        """Records that the main thread has reached one of PLACES."""
        if self._first_step is None and place == DATA:
            self._first_step = step
        self._now = (place, step, self._clock() - self._not_run_s)

    def now(self) -> tuple[str, int, float]:
        """Returns place, step, and the seconds of running time that the main thread has been there."""
        place, step, since = self._now
        return place, step, max(0.0, self._clock() - self._not_run_s - since)

    def fail(self, error: BaseException) -> None:
        """Records the error by which the session fails; that of a connection is the fault of another rank."""
        if not _is_of_connection(error):
            self.error = error

    def deduct(self, seconds: float) -> None:
        """Takes seconds off in which this process did not run, as it was stopped or its machine slept."""
        self._not_run_s += seconds

    def in_later_step(self) -> bool:
        """Returns True in a step after the first of this session; the first may compile."""
        place, step, _ = self._now
        return place in STEP_PLACES and self._first_step is not None and step > self._first_step


class Watchdog:
    """A context manager that watches this rank; `leave` ends the process with an exit code."""

    def __init__(
        self,
        heartbeats: Heartbeats,
        whereabouts: Whereabouts,
        *,
        limits: StallLimits,
        leave: Callable[[int], object] = os._exit,
    ):
        self._heartbeats, self._whereabouts, self._limits, self._leave = heartbeats, whereabouts, limits, leave
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._told_of_error = False
        self._failed: RankFailure | None = None
        self._last_resort = LastResort(max(limits.step_s, limits.elsewhere_s) + heartbeats.silent_after_s)

    def __enter__(self) -> "Watchdog":
        self._beat()
        self._last_resort.postpone()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(_GRACE_S)  # it may be stuck in a write to the run directory
        self._last_resort.cancel()
        if error is None:
            self._heartbeats.remove()
        else:
            self._whereabouts.error = error
            self._mark_own_failure()
            self._beat(ended=_in_words(error))

    def explain(self, error: RuntimeError) -> None:
        """Ends this process if `error` is the failure of a collective, and names the rank that caused it.

        Returns if it is an error of this rank alone.
        """
        if not _is_of_connection(error):
            return
        reason = str(error).partition("\n")[0]
        beside = f"rank {self._heartbeats.own.rank} cannot continue without it ({reason})"
        # two more periods: the last heartbeat may be from just before the end, and clocks differ
        deadline = time.monotonic() + self._heartbeats.silent_after_s + 2 * self._heartbeats.period_s
        while (others := self._heartbeats.others()) and time.monotonic() < deadline:
            if failure := self._heartbeats.first_failure():
                self._end(f"{failure}: {beside}", failure.exit_code)
                return
            if gone := [sign for sign in others if sign.silent or sign.stalled]:
                self._end(f"{_describe(gone)}: {beside}", EXIT_CODE_LOST)
                return
            time.sleep(self._heartbeats.period_s / 4)
        if others:
            logger.error("a collective failed, and no rank is known to be lost", exc_info=error)
            self._end(f"rank {self._heartbeats.own.rank} lost its connection ({reason})", EXIT_CODE_LOST)

    def _watch(self) -> None:
        woken, next_beat, failed_at = time.monotonic(), 0.0, math.inf
        tick_s = min(self._heartbeats.period_s, _LOOK_S)
        while not self._over.wait(tick_s):
            now = time.monotonic()
            self._last_resort.postpone()
            self._deduct(now - woken - tick_s)
            woken = now
            if now >= next_beat:
                next_beat = now + self._heartbeats.period_s - tick_s / 2
                self._beat()
            if failure := self._failure():
                failed_at = min(failed_at, now)
                if now > failed_at + _GRACE_S:
                    self._end(f"{failure}: rank {self._heartbeats.own.rank} cannot continue", failure.exit_code)
                    return
            place, step, stood_s = self._whereabouts.now()
            limit_s = self._limits.step_s if self._whereabouts.in_later_step() else self._limits.elsewhere_s
            if stood_s > limit_s:
                self._stalled(place, step, stood_s)
                return

    def _deduct(self, late_s: float) -> None:
        """Takes off the time in which this process did not run, when it is longer than a busy machine takes."""
        if late_s > self._heartbeats.silent_after_s:
            self._whereabouts.deduct(late_s)
            rank = self._heartbeats.own.rank
            logger.warning("rank %d did not run for %.0f s, as it was stopped; it continues", rank, late_s)

    def _failure(self) -> RankFailure | None:
        self._mark_own_failure()
        return self._failed or self._heartbeats.first_failure()

    def _mark_own_failure(self) -> None:
        error = self._whereabouts.error
        if error is None or self._failed is not None:
            return
        code = getattr(error, "exit_code", EXIT_CODE_CRASH)
        self._failed = RankFailure(self._heartbeats.own.rank, code, _in_words(error))
        with suppress(OSError):  # the others notice when their collectives fail
            self._heartbeats.mark_failure(self._failed)

    def _beat(self, *, ended: str = "", stalled: bool = False) -> None:
        place, step, stood_s = self._whereabouts.now()
        sign = replace(self._heartbeats.own, place=place, step=step, stood_s=stood_s, ended=ended, stalled=stalled)
        try:
            self._heartbeats.write(sign)
        except OSError as error:
            if not self._told_of_error:
                logger.warning("heartbeats cannot be written (%s), so a lost rank cannot be named", error)
            self._told_of_error = True

    def _stalled(self, place: str, step: int, stood_s: float) -> None:
        own = f"has been in {place} (step {step}) for {stood_s:.0f} s"
        others = self._heartbeats.others()
        behind = [s for s in others if s.silent or s.stalled or (s.step, _order(s.place)) < (step, _order(place))]
        waits_for = f"it waits for {_describe(behind)}" if behind else "no rank is behind it"
        with suppress(OSError):  # standard error may be lost
            sys.stderr.flush()
            title = f"{self._heartbeats.own}: the stacks of all threads, this one's main thread last\n"
            os.write(_STDERR, title.encode())
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        self._beat(ended=own, stalled=True)
        self._end(f"{self._heartbeats.own} {own}; {waits_for}", EXIT_CODE_LOST)

    def _end(self, sentence: str, code: int) -> None:
        logger.error(
            "%s. The steps since the last checkpoint are lost; the same command continues from it (exit code %d)",
            sentence,
            code,
        )
        self._last_resort.cancel()
        with suppress(OSError):
            sys.stderr.flush()
        self._leave(code)


_LEAST_WAKE_S = 5.0  # a process that was woken on a busy machine needs a while to say so


class LastResort:
    """Timers that end this process by SIGALRM when Python cannot run for `after_s` seconds.

    The time in which a process is stopped passes for timers too. But several alarms that come meanwhile are delivered
    as one, so the first one does nothing, and only another one, a quarter of the time and at least five seconds later,
    ends the process.
    """

    def __init__(self, after_s: float):
        self._after_s = after_s
        self._previous = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
        self._libc = ctypes.CDLL(None)

    def postpone(self) -> None:
        """Starts the time again."""
        once = getattr(self._libc, "sysv_signal", None)  # of glibc
        faulthandler.dump_traceback_later(1.1 * self._after_s, exit=once is None, file=_STDERR)
        if once is not None:
            # restores the default action, which ends the process, before it calls the function for the first alarm
            once(signal.SIGALRM, ctypes.cast(self._libc.abs, ctypes.c_void_p))
            signal.setitimer(signal.ITIMER_REAL, self._after_s, max(self._after_s / 4, _LEAST_WAKE_S))

    def cancel(self) -> None:
        """Stops the timers, and restores what the alarm did before."""
        handler, timer = self._previous
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, *timer)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGALRM, handler)


def watchdog_of(run_root: Path, topology: Topology, whereabouts: Whereabouts, *, limits: StallLimits) -> Watchdog:
    """Returns the watchdog of this rank in a new session of a run; all ranks call it together."""
    heartbeats = Heartbeats(
        run_root, from_first(secrets.token_hex(4)), rank=topology.rank, world_size=topology.world_size
    )
    if topology.is_first:
        heartbeats.remove_of_earlier_sessions()
    return Watchdog(heartbeats, whereabouts, limits=limits)


def _is_of_connection(error: BaseException) -> bool:
    broken = isinstance(error, RuntimeError) and _OF_CONNECTION.search(str(error))
    return bool(broken) or isinstance(error, dist.DistError)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:1000]


def _order(place: str) -> int:
    return PLACES.index(place) if place in PLACES else -1


def _describe(signs: list[Sign]) -> str:
    shown = "; ".join(_describe_one(sign) for sign in signs[:_SHOWN_RANKS])
    return shown if len(signs) <= _SHOWN_RANKS else f"{shown}; and {len(signs) - _SHOWN_RANKS} more"


def _describe_one(sign: Sign) -> str:
    if sign.ended:
        return f"{sign}, which ended: {sign.ended}"
    where = f"{sign.place} (step {sign.step})"
    if sign.silent:
        return f"{sign}, silent for {sign.age_s:.0f} s, last seen in {where}"
    return f"{sign}, which has been in {where} for {sign.stood_s + sign.age_s:.0f} s"
