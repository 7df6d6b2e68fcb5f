"""Signs of life: a small file per rank in the run directory, written anew every few seconds by a thread of that rank.

Files, and not the process group's store: that one lives in rank 0, and what is to be told is who is gone. A rank that
leaves writes down why, so a file that merely grows old is that of a process that was killed, frozen or cut off. Its age
is a difference of modification times, which come from one clock, that of the file system.
"""

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FOLDER_NAME = "heartbeats"
# a file that is older than so many periods has stopped
_SILENT_PERIODS = 5
# so many files a second at most, for the sake of shared file systems
_FILES_PER_S = 50


@dataclass(frozen=True)
class Sign:
    """What a rank last told of itself.

    place, step, stood_s: where its main thread stood, and for how long. ended: why it left, "" while it runs.
    stalled: whether it left because it stood still. For a reader, age_s: how much older than its own sign this one is;
    silent: whether it is too old, though the rank had not told that it leaves.
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


class Heartbeats:
    """The files of one session of a run.

    Args:
        session: a name that no other session of the run has; a rank that outlives its session is not taken for ours.
    """

    def __init__(self, run_root: Path, session: str, *, rank: int, world_size: int):
        self._folder, self._session = run_root / FOLDER_NAME, session
        self._rank, self._world_size = rank, world_size
        self.period_s = max(1.0, world_size / _FILES_PER_S)
        self.silent_after_s = _SILENT_PERIODS * self.period_s
        self.own = Sign(rank, socket.gethostname(), os.getpid())

    def write(self, sign: Sign) -> None:
        """Replaces this rank's file."""
        path = self._path(self._rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(asdict(sign)))
        unfinished.replace(path)

    def others(self) -> list[Sign]:
        """Reads what the other ranks told last, without those that have left in order."""
        try:
            now = self._path(self._rank).stat().st_mtime
        except OSError:  # a later session has taken the folder, or the disk has failed
            return []
        return [sign for rank in range(self._world_size) if rank != self._rank and (sign := self._read(rank, now))]

    def remove(self) -> None:
        """Takes this rank's file away: it has left in order. The last one to leave takes the folder."""
        self._path(self._rank).unlink(missing_ok=True)
        with suppress(OSError):  # others are still there
            self._folder.rmdir()

    def remove_of_earlier_sessions(self) -> None:
        """Removes what sessions left that did not end in order; for rank 0 alone."""
        for path in self._folder.glob("*-rank-*"):
            if not path.name.startswith(self._session):
                path.unlink(missing_ok=True)

    def _path(self, rank: int) -> Path:
        return self._folder / f"{self._session}-rank-{rank:05d}.json"

    def _read(self, rank: int, now: float) -> Sign | None:
        path = self._path(rank)
        try:
            written, text = path.stat().st_mtime, path.read_text()
        except OSError:
            return None
        sign, age_s = Sign(**json.loads(text)), max(0.0, now - written)
        return replace(sign, age_s=age_s, silent=not sign.ended and age_s > self.silent_after_s)
