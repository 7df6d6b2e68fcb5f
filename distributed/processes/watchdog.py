"""The watchdog: a thread of every rank that tells that it lives, and ends the rank when it no longer gets on.

Ranks wait for each other in every collective, so one that stands still, or is gone, leaves all others waiting, and what
they say when their time is up names no culprit. Here a rank that stands still prints the stacks of its threads and says
where it stood; one whose collective failed looks at the signs of life of the others and names who is missing. Both end
at once with exit code 86: with partners gone there is nothing to save, and leaving in order could hang.
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
    """How long a rank may stand in one place: of a step but the first, and elsewhere (start, checkpoint, ...)."""

    step_s: float
    elsewhere_s: float


# a rank is gone or stands still; the same command, run again, goes on from the newest checkpoint
EXIT_CODE_LOST = 86
# in the order of a step: of two ranks at the same step, the one in the earlier place is behind
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
    """Where the main thread of this rank stands, for its watchdog."""

    def __init__(self) -> None:
        self._now = (START, 0, time.monotonic())
        self._first_step: int | None = None

    def at(self, place: str, step: int) -> None:
        """Notes that the main thread has come to one of PLACES."""
        if self._first_step is None and place == DATA:
            self._first_step = step
        self._now = (place, step, time.monotonic())

    def now(self) -> tuple[str, int, float]:
        """Returns place, step, and for how many seconds the main thread has stood there."""
        place, step, since = self._now
        return place, step, time.monotonic() - since

    def in_later_step(self) -> bool:
        """Whether the main thread is in a step that is not the first of this session."""
        place, step, _ = self._now
        return place in STEP_PLACES and self._first_step is not None and step > self._first_step


class Watchdog:
    """Watches this rank while it is entered as a context manager.

    Args:
        limits: how long the rank may stand in one place.
        leave: ends the process.
    """

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
        """Finds out whether `error`, perhaps of a collective, is the end of another rank as this one sees it.

        A rank that is gone or stood still is named, and this process ends. One that left with an error of its own is
        named in the log; the caller raises `error` again.
        """
        # two periods more: the last sign may have been written just before the end, and this rank's clock is its own
        deadline = time.monotonic() + self._heartbeats.silent_after_s + 2 * self._heartbeats.period_s
        while (others := self._heartbeats.others()) and time.monotonic() < deadline:
            if gone := [sign for sign in others if sign.silent or sign.stalled]:
                reason = str(error).partition("\n")[0]
                self._end(f"{_describe(gone)}: rank {self._heartbeats.own.rank} cannot go on without it ({reason})")
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
                logger.warning("no signs of life can be written (%s): if ranks are lost, none can be named", error)
            self._told_of_error = True
        # a timer without Python, wound up by every sign: it ends the process if nothing in Python can run any more
        timer_s = max(self._limits.step_s, self._limits.elsewhere_s) + self._heartbeats.silent_after_s
        faulthandler.dump_traceback_later(timer_s, exit=True, file=_STDERR)

    def _stalled(self, place: str, step: int, stood_s: float) -> None:
        own = f"has stood in {place} (step {step}) for {stood_s:.0f} s"
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
            "%s. The steps since the last checkpoint are lost; the same command goes on from there (exit code %d)",
            sentence,
            EXIT_CODE_LOST,
        )
        faulthandler.cancel_dump_traceback_later()
        sys.stderr.flush()
        self._leave(EXIT_CODE_LOST)


def watchdog_of(run_root: Path, topology: Topology, whereabouts: Whereabouts, *, limits: StallLimits) -> Watchdog:
    """The watchdog of this rank in a new session of a run; all ranks call it together."""
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
        return f"{sign}, of which there is no sign since {sign.age_s:.0f} s, last seen in {where}"
    return f"{sign}, which has stood in {where} for {sign.stood_s + sign.age_s:.0f} s"
