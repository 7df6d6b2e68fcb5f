"""Heartbeats: a small file per rank in the run directory, rewritten every few seconds.

A thread of the rank writes it. The process group's store cannot hold them: it dies with rank 0. A rank that leaves
writes its reason, so an old file means that the process was killed, frozen or cut off. Ages are differences of
modification times, because the file system has one clock and the nodes do not.

A rank that fails also leaves a mark. All ranks look for marks, in one folder that exists only then, so each look is one
request whatever the number of ranks.
"""

import json
import os
import shutil
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FOLDER_NAME = "heartbeats"
# a rank is silent after this many periods without a heartbeat
_SILENT_PERIODS = 5
# all ranks together write at most this many files a second, to spare a shared file system
_FILES_PER_S = 50
# the folder of the marks of a session; their names hold what all ranks must know, as a full disk still takes names
_FAILED = "-failed"


@dataclass(frozen=True)
class Sign:
    """The last heartbeat of a rank.

    place, step, stood_s: position of its main thread, and the seconds there. ended: why it left, "" while it runs.
    stalled: it left because it stalled. Set by the reader: age_s, relative to the reader's own heartbeat, and silent,
    for a heartbeat that is too old although the rank has not left.
    """

    rank: int
    host: str
    pid: int
    place: str = ""
    step: int = 0
    stood_s: float = 0.0
    ended: str = ""
    stalled: bool = False
    age_s: float = 0.0
    silent: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (process {self.pid})"


@dataclass(frozen=True)
class RankFailure:
    """The end of a rank by an error: the exit code that all ranks take over, and the error in words."""

    rank: int
    exit_code: int
    error: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} failed first" + (f" ({self.error})" if self.error else "")


class Heartbeats:
    """The heartbeat files of one session of a run.

    Args:
        session: a unique name, so that a rank of an earlier session is not mistaken for one of ours.
    """

    def __init__(self, run_root: Path, session: str, *, rank: int, world_size: int):
        self._folder, self._session = run_root / FOLDER_NAME, session
        self._failures = self._folder / f"{session}{_FAILED}"
        self._rank, self._world_size = rank, world_size
        self.period_s = max(1.0, world_size / _FILES_PER_S)
        self.silent_after_s = _SILENT_PERIODS * self.period_s
        self.own = Sign(rank, socket.gethostname(), os.getpid())

    def write(self, sign: Sign) -> None:
        """Replaces this rank's file atomically."""
        path = self._path(self._rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(asdict(sign)))
        unfinished.replace(path)

    def others(self) -> list[Sign]:
        """Reads the heartbeats of the other ranks, except of those that left in order."""
        try:
            now = self._path(self._rank).stat().st_mtime
        except OSError:  # a later session has taken the folder, or the disk has failed
            return []
        return [sign for rank in range(self._world_size) if rank != self._rank and (sign := self._read(rank, now))]

    def mark_failure(self, failure: RankFailure) -> None:
        """Leaves the mark of this rank's failure for the other ranks."""
        self._failures.mkdir(parents=True, exist_ok=True)
        mark = self._failures / f"rank-{failure.rank:05d}-exit-{failure.exit_code}"
        mark.touch()
        mark.write_text(failure.error)

    def first_failure(self) -> RankFailure | None:
        """Returns the earliest failure of a rank that left a mark."""
        try:
            _, mark = min((path.stat().st_mtime_ns, path) for path in self._failures.glob("rank-*-exit-*"))
            _, rank, _, exit_code = mark.name.split("-")
            return RankFailure(int(rank), int(exit_code), mark.read_text(errors="replace"))
        except (OSError, ValueError):  # none; or a later session has taken the folder
            return None

    def remove(self) -> None:
        """Removes this rank's file when it leaves in order; the last rank removes the folder."""
        self._path(self._rank).unlink(missing_ok=True)
        with suppress(OSError):  # others are still there
            self._folder.rmdir()

    def remove_of_earlier_sessions(self) -> None:
        """Removes the files of sessions that did not end in order; for rank 0 alone."""
        for path in self._folder.glob("*-*"):
            if path.name.startswith(self._session):
                continue
            if path.name.endswith(_FAILED):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _path(self, rank: int) -> Path:
        return self._folder / f"{self._session}-rank-{rank:05d}.json"

    def _read(self, rank: int, now: float) -> Sign | None:
        path = self._path(rank)
        try:
            written, content = path.stat().st_mtime, path.read_bytes()
        except OSError:
            return None
        try:
            sign = Sign(**json.loads(content))
        except (ValueError, TypeError):  # torn by a crash of the file system; its age still counts
            sign = Sign(rank, "an unknown host", 0)
        age_s = max(0.0, now - written)
        return replace(sign, age_s=age_s, silent=not sign.ended and age_s > self.silent_after_s)
