"""A byte budget for shards on the node's disk, for all its runs; evicts shards that nobody reads.

The file `budget` has the bytes of all shards and of the downloads in progress, so a reservation lists no shards. A
crash can only leave it too large: bytes are added before a file is made, and subtracted after it is gone. Each process
counts the folder at its first reservation, and again when it finds too little to evict, which corrects the file.

Each process evicts from its own queue: the shards that it counted, then those that it has closed since. Shards that
were read go first, the least recently used before others. A prefetched shard that waits for its reader is evicted for
one that is needed now, but not for another prefetched one.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path

from data.reading.fetching import Tally
from data.shards.format import index_name
from pupujepa.locks import LockTakenError, held, open_locked

_LOG = logging.getLogger(__name__)
# an unread prefetched shard is spared from other prefetching for this long; after that, its reader has died
UNREAD_GRACE_S = 600.0


@dataclass(frozen=True)
class CacheConfig:
    """Folder and limits of the cache.

    directory: on the node's own disk; `flock` must work there.
    budget_bytes: limit for all shards in the folder.
    patience_s: time to wait for others to release shards, or to make progress while they hold a lock.
    """

    directory: Path
    budget_bytes: int
    patience_s: float = 60.0


@dataclass(frozen=True)
class NoRoom:
    """A failed reservation."""

    lacking_bytes: int


class CacheRoom:
    """The budget of one cache folder; processes share it through the folder's files and locks.

    Args:
        free_bytes: returns the free space of the disk that holds a path.
        clock_ns: wall clock, which ranks shards for eviction.
    """

    def __init__(
        self,
        config: CacheConfig,
        *,
        tally: Tally,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        clock_ns: Callable[[], int] = time.time_ns,
    ):
        self.config = config
        self._tally, self._free_bytes, self._clock_ns = tally, free_bytes, clock_ns
        self._budget = config.directory / "budget"
        # downloads in progress of all sets, in one folder, so that finding them lists no shards
        self._downloads = config.directory / "downloads"
        self._downloads.mkdir(parents=True, exist_ok=True)
        # heaps of (time of use, shard); each shard that was read is queued once, however often it is closed
        self._read: list[tuple[int, Path]] = []
        self._unread: list[tuple[int, Path]] = []
        self._queued: set[Path] = set()
        self._closed: dict[Path, int] = {}  # filled by the reading thread too
        self._counted_ns = 0  # time of the last count
        self._stuck: set[Path] = set()

    @contextmanager
    def locked(self, lock: Path, *, progress: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Holds a lock of the cache; waits for its holder as long as `progress` changes.

        Raises:
            LockTakenError: the holder made no progress for `patience_s`, which is logged once; the next time this is
                raised at once.
        """
        with ExitStack() as stack:
            while True:
                seen = progress()
                try:
                    stack.enter_context(held(lock, wait_s=0.0 if lock in self._stuck else self.config.patience_s))
                    break
                except LockTakenError as error:
                    if progress() == seen:
                        self._say_stuck(lock, error.holder)
                        raise
            self._stuck.discard(lock)
            yield

    def reserve(self, shard: Path, num_bytes: int, *, ahead: bool) -> Path | NoRoom:
        """Makes room for a shard and returns the file that reserves it, to download into.

        The caller holds the shard's fetch lock. A copy that the shard replaces is removed.

        Args:
            ahead: prefetching: spares the unread shards of others, and does not wait.

        Raises:
            LockTakenError: another process holds the lock of the budget and does not release it.
        """
        give_up_at = time.monotonic() + self.config.patience_s
        reservation = self._downloads / f"{shard.parent.name}.{shard.name}.{num_bytes}"
        while True:
            with self._budget_lock():
                self._remove_abandoned()  # before counting, so that dead downloads hold no budget
                self._drop(reservation)  # of a killed download of this shard
                self._remove(shard)
                lacking = self._make_room(num_bytes, sparing_unread=ahead)
                if lacking <= 0:
                    self._claim(num_bytes)
                    reservation.touch()
                    return reservation
            if ahead or time.monotonic() > give_up_at:
                return NoRoom(lacking)
            time.sleep(0.05)  # outside the lock, so that readers can release shards

    def release(self, reservation: Path) -> None:
        """Gives up a download; the caller holds its fetch lock."""
        with suppress(LockTakenError), self._budget_lock():  # if taken, a later reservation finds it abandoned
            self._drop(reservation)

    def closed(self, shard: Path, used_ns: int) -> None:
        """Records that this process has closed a shard, which it may evict now."""
        self._closed[shard] = used_ns

    def progress_of(self, shard: Path) -> object:
        """Returns a value that changes while the shard is being downloaded."""
        names = (f"{shard.parent.name}.{shard.name}.", f".{shard.parent.name}.{shard.name}.")
        seen = []
        for entry in os.scandir(self._downloads):
            if entry.name.startswith(names):
                with suppress(FileNotFoundError):
                    seen.append((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns))
        return sorted(seen)

    def _say_stuck(self, lock: Path, holder: str) -> None:
        if lock not in self._stuck:
            _LOG.warning(
                "%s holds %s of the shard cache and has made no progress for %.0f s; what it blocks is read from the "
                "store, beside the cache: continue or end that process",
                *(holder, lock, self.config.patience_s),
            )
        self._stuck.add(lock)

    def _budget_lock(self) -> AbstractContextManager[None]:
        return self.locked(self.config.directory / "budget.lock")

    def _make_room(self, needed: int, *, sparing_unread: bool) -> int:
        """Evicts shards until `needed` more bytes fit; returns the bytes still lacking."""
        while self._closed:
            self._queue_read(*self._closed.popitem())
        if not self._counted_ns or self._claimed() is None:
            self._count()
        lacking = self._evict(self._lacking_bytes(needed), sparing_unread=sparing_unread)
        # prefetching asks often while the cache is full
        rested = not sparing_unread or self._clock_ns() - self._counted_ns > UNREAD_GRACE_S / 10 * 1e9
        if lacking > 0 and rested:
            self._count()
            lacking = self._evict(self._lacking_bytes(needed), sparing_unread=sparing_unread)
        return lacking

    def _lacking_bytes(self, needed: int) -> int:
        """Returns the bytes to remove before `needed` more fit into the budget and onto the disk."""
        over_budget = (self._claimed() or 0) + needed - self.config.budget_bytes
        over_disk = sum(map(_bytes_of, self._reservations())) + needed - self._free_bytes(self.config.directory)
        return max(over_budget, over_disk)

    def _evict(self, lacking: int, *, sparing_unread: bool) -> int:
        """Removes unpinned shards of the queues; returns the bytes still lacking."""
        for queue in (self._read,) if sparing_unread else (self._read, self._unread):
            while lacking > 0 and queue:
                noted_ns, shard = heappop(queue)
                self._queued.discard(shard)
                with suppress(FileNotFoundError, BlockingIOError), _exclusively(shard) as status:
                    if status.st_atime_ns != noted_ns:  # used or fetched since by another process
                        self._queue(shard, status)
                        continue
                    _LOG.info("evicting %s", shard)
                    self._remove(shard)
                    self._tally.add("evictions")
                    lacking -= status.st_size
        return lacking

    def _count(self) -> None:
        """Sums up the folder, and queues its shards."""
        # downloads first: one that ends in between is then seen twice, never missed
        claimed = {reservation.name.rpartition(".")[0]: _bytes_of(reservation) for reservation in self._reservations()}
        shards = self._all_shards()
        claimed |= {f"{shard.parent.name}.{shard.name}": status.st_size for shard, status in shards.items()}
        self._write_claimed(sum(claimed.values()))
        self._read, self._unread, self._queued = [], [], set()
        for shard, status in shards.items():
            self._queue(shard, status)
        self._counted_ns = self._clock_ns()

    def _queue(self, shard: Path, status: os.stat_result) -> None:
        if is_unread(status) and self._clock_ns() - status.st_mtime_ns < UNREAD_GRACE_S * 1e9:
            heappush(self._unread, (status.st_atime_ns, shard))
        else:
            self._queue_read(shard, status.st_atime_ns)

    def _queue_read(self, shard: Path, used_ns: int) -> None:
        if shard not in self._queued:
            self._queued.add(shard)
            heappush(self._read, (used_ns, shard))

    def _all_shards(self) -> dict[Path, os.stat_result]:
        """Returns the published shards of all sets in the folder: the files that have an index."""
        shards = {}
        for locks in self.config.directory.glob("*/locks"):  # marks our folders
            names = {file.name for file in os.scandir(locks.parent)}
            for shard in (locks.parent / name for name in names if index_name(name) in names):
                with suppress(FileNotFoundError):
                    shards[shard] = shard.stat()
        return shards

    def _reservations(self) -> list[Path]:
        return [file for file in self._downloads.iterdir() if not file.name.startswith(".")]

    def _remove_abandoned(self) -> None:
        """Gives back the bytes of killed downloads, whose fetch locks are free."""
        for reservation in self._reservations():
            folder, _, name = reservation.name.rpartition(".")[0].partition(".")
            lock = fetch_lock(self.config.directory / folder / name)
            lock.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed the set by hand
            with suppress(LockTakenError), held(lock):
                self._drop(reservation)

    def _drop(self, reservation: Path) -> None:
        """Removes a download, if it is there, and then its claim; needs the lock of the budget."""
        if reservation.exists():
            for part in self._downloads.iterdir():
                if part.name.startswith(f".{reservation.name}."):
                    part.unlink(missing_ok=True)
            reservation.unlink()
            self._claim(-_bytes_of(reservation))

    def _remove(self, shard: Path) -> None:
        """Removes a shard, if it is there, and then its claim; needs the lock of the budget."""
        with suppress(FileNotFoundError):
            size = shard.stat().st_size
            shard.unlink()
            shard.with_name(index_name(shard.name)).unlink(missing_ok=True)
            self._claim(-size)

    def _claim(self, num_bytes: int) -> None:
        if (claimed := self._claimed()) is not None:
            self._write_claimed(claimed + num_bytes)

    def _write_claimed(self, num_bytes: int) -> None:
        handle = os.open(self._budget, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # of one length, in place: never half a number after a kill, and no new block on a full disk
            os.pwrite(handle, b"%20d" % num_bytes, 0)
        finally:
            os.close(handle)

    def _claimed(self) -> int | None:
        """Returns the bytes of all shards and downloads; None if they have to be counted."""
        try:
            return int(self._budget.read_text())
        except (FileNotFoundError, ValueError):
            return None


def fetch_lock(shard: Path) -> Path:
    """Returns the lock file of a shard's download."""
    return shard.parent / "locks" / f"{shard.name}.fetch"


def mark_unread(shard: Path, now_ns: int) -> None:
    """Marks a shard as fetched, or still wanted, and unread."""
    os.utime(shard, ns=(now_ns, now_ns))  # atime == mtime means unread


def mark_used(file: int, now_ns: int) -> None:
    """Marks an open shard as read now."""
    published_ns = os.fstat(file).st_mtime_ns
    os.utime(file, ns=(max(now_ns, published_ns + 1), published_ns))  # atime > mtime means read


def is_unread(status: os.stat_result) -> bool:
    """Returns True if a shard was fetched but not read."""
    return status.st_atime_ns <= status.st_mtime_ns


@contextmanager
def _exclusively(shard: Path) -> Iterator[os.stat_result]:
    """Locks a shard against readers. Raises BlockingIOError if one has it open."""
    handle = open_locked(shard, shared=False)
    try:
        yield os.fstat(handle)
    finally:
        os.close(handle)


def _bytes_of(reservation: Path) -> int:
    return int(reservation.name.rpartition(".")[2])
