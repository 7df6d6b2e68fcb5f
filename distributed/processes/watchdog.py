"""The watchdog: a thread of every rank that writes heartbeats and ends the rank when it stalls.

Ranks wait for each other in every collective. So one lost or stalled rank stops all, and their timeouts do not name it.
A stalled rank prints the stacks of its threads and its position. A rank whose collective failed reads the heartbeats
and names the lost rank. Both end at once with exit code 86: without all ranks nothing can be saved, and leaving in
order could hang.
"""

import faulthandler
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from distributed.processes.collectives import from_first
from distributed.processes.heartbeats import Heartbeats, Sign
from distributed.processes.topology import Topology


@dataclass(frozen=True)
class StallLimits:
    """Seconds that a rank may stay in one place: in steps after the first, and elsewhere.

    Elsewhere is the start, a checkpoint and so on.
    """

    step_s: float
    elsewhere_s: float


# a rank is lost or stalled; the same command continues from the newest checkpoint
EXIT_CODE_LOST = 86
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

logger = logging.getLogger(__name__)


class Whereabouts:
    """The position of this rank's main thread, for its watchdog."""

    def __init__(self) -> None:
        self._now = (START, 0, time.monotonic())
        self._first_step: int | None = None

    def at(self, place: str, step: int) -> None:
        """Records that the main thread has reached one of PLACES."""
        if self._first_step is None and place == DATA:
            self._first_step = step
        self._now = (place, step, time.monotonic())

    def now(self) -> tuple[str, int, float]:
        """Returns place, step, and the seconds that the main thread has been there."""
        place, step, since = self._now
        return place, step, time.monotonic() - since

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

    def __enter__(self) -> "Watchdog":
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if error is None:
            self._heartbeats.remove()
        else:
            self._beat(ended=f"{type(error).__name__}: {error}")

    def explain(self, error: RuntimeError) -> None:
        """Checks if another rank caused `error`, as the failure of a collective.

        Ends this process if a rank is lost or stalled. A rank that left with its own error is only logged, and the
        caller raises `error` again.
        """
        # two more periods: the last heartbeat may be from just before the end, and clocks differ
        deadline = time.monotonic() + self._heartbeats.silent_after_s + 2 * self._heartbeats.period_s
        while (others := self._heartbeats.others()) and time.monotonic() < deadline:
            if gone := [sign for sign in others if sign.silent or sign.stalled]:
                reason = str(error).partition("\n")[0]
                self._end(f"{_describe(gone)}: rank {self._heartbeats.own.rank} cannot continue without it ({reason})")
                return
            if left := [sign for sign in others if sign.ended]:
                logger.error("ended before this rank: %s", _describe(left))
                return
            time.sleep(self._heartbeats.period_s / 4)

    def _watch(self) -> None:
        while not self._over.wait(self._heartbeats.period_s):
            self._beat()
            place, step, stood_s = self._whereabouts.now()
            limit_s = self._limits.step_s if self._whereabouts.in_later_step() else self._limits.elsewhere_s
            if stood_s > limit_s:
                self._stalled(place, step, stood_s)
                return

    def _beat(self, *, ended: str = "", stalled: bool = False) -> None:
        place, step, stood_s = self._whereabouts.now()
        sign = replace(
            self._heartbeats.own, place=place, step=step, stood_s=stood_s, ended=ended[:1000], stalled=stalled
        )
        try:
            self._heartbeats.write(sign)
        except OSError as error:
            if not self._told_of_error:
                logger.warning("heartbeats cannot be written (%s), so a lost rank cannot be named", error)
            self._told_of_error = True
        # a C timer, restarted by every heartbeat: it ends the process if Python cannot run any more
        timer_s = max(self._limits.step_s, self._limits.elsewhere_s) + self._heartbeats.silent_after_s
        faulthandler.dump_traceback_later(timer_s, exit=True, file=_STDERR)

    def _stalled(self, place: str, step: int, stood_s: float) -> None:
        own = f"has been in {place} (step {step}) for {stood_s:.0f} s"
        others = self._heartbeats.others()
        behind = [s for s in others if s.silent or s.stalled or (s.step, _order(s.place)) < (step, _order(place))]
        waits_for = f"it waits for {_describe(behind)}" if behind else "no rank is behind it"
        sys.stderr.flush()
        os.write(_STDERR, f"{self._heartbeats.own}: the stacks of all threads, this one's main thread last\n".encode())
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        self._beat(ended=own, stalled=True)
        self._end(f"{self._heartbeats.own} {own}; {waits_for}")

    def _end(self, sentence: str) -> None:
        logger.error(
            "%s. The steps since the last checkpoint are lost; the same command continues from it (exit code %d)",
            sentence,
            EXIT_CODE_LOST,
        )
        faulthandler.cancel_dump_traceback_later()
        sys.stderr.flush()
        self._leave(EXIT_CODE_LOST)


def watchdog_of(run_root: Path, topology: Topology, whereabouts: Whereabouts, *, limits: StallLimits) -> Watchdog:
    """Returns the watchdog of this rank in a new session of a run; all ranks call it together."""
    heartbeats = Heartbeats(
        run_root, from_first(secrets.token_hex(4)), rank=topology.rank, world_size=topology.world_size
    )
    if topology.is_first:
        heartbeats.remove_of_earlier_sessions()
    return Watchdog(heartbeats, whereabouts, limits=limits)


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
