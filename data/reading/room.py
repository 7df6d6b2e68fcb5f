"""A byte budget for shards on the node's disk, for all its runs; evicts shards that nobody reads.

Downloads in progress count too: each has a file with its size in the name. The least recently used shard goes first. A
prefetched shard is evicted for one that is needed now, but not for another prefetched one.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from data.reading.tally import Tally
from data.shards.format import index_name
from pupujepa.locks import held

_LOG = logging.getLogger(__name__)
_FETCHING = ".fetching"
# an unread prefetched shard is spared from other prefetching for this long; after that, its reader has died
UNREAD_GRACE_S = 600.0


@dataclass(frozen=True)
class CacheConfig:
    """Folder and limits of the cache.

    directory: on the node's own disk; `flock` must work there.
    budget_bytes: limit for all shards in the folder.
    patience_s: time to wait for others to release shards.
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

    def reserve(self, shard: Path, num_bytes: int, *, ahead: bool) -> Path | NoRoom:
        """Makes room for a shard and returns the file that reserves it, to download into.

        Args:
            ahead: prefetching: spares the unread shards of others, and does not wait.
        """
        give_up_at = time.monotonic() + self.config.patience_s
        while True:
            with held(self.config.directory / "budget.lock"):
                self._remove_abandoned()  # before counting, so that dead downloads hold no budget
                lacking = self._evict(self._lacking_bytes(num_bytes), sparing_unread=ahead)
                if lacking <= 0:
                    reservation = shard.with_name(f"{shard.name}.{num_bytes}{_FETCHING}")
                    reservation.touch()
                    return reservation
            if ahead or time.monotonic() > give_up_at:
                return NoRoom(lacking)
            time.sleep(0.05)  # outside the lock, so that readers can release shards

    def _lacking_bytes(self, needed: int) -> int:
        """Returns the bytes to remove before `needed` more fit into the budget and onto the disk."""
        kept = sum(status.st_size for status in self._all_shards().values())  # indices are small and not counted
        # name: <shard>.<bytes>.fetching
        coming = sum(int(reservation.name.split(".")[-2]) for reservation in self._reservations())
        over_budget = kept + coming + needed - self.config.budget_bytes
        over_disk = coming + needed - self._free_bytes(self.config.directory)
        return max(over_budget, over_disk)

    def _evict(self, lacking: int, *, sparing_unread: bool) -> int:
        """Removes unpinned shards, least recently used first; returns the bytes still lacking."""
        spared_after = self._clock_ns() - int(UNREAD_GRACE_S * 1e9)
        for shard, status in sorted(self._all_shards().items(), key=lambda item: item[1].st_atime_ns):
            if lacking <= 0:
                break
            if sparing_unread and is_unread(status) and status.st_mtime_ns > spared_after:
                continue
            with held(shard.parent / "locks" / f"{shard.name}.pin", wait=False) as free:  # not free: somebody reads it
                if free:
                    _LOG.info("evicting %s", shard)
                    shard.unlink(missing_ok=True)
                    shard.with_name(index_name(shard.name)).unlink(missing_ok=True)
                    self._tally.add("evictions")
                    lacking -= status.st_size
        return lacking

    def _all_shards(self) -> dict[Path, os.stat_result]:
        """Returns the published shards of all sets in the folder, found by their fetch locks."""
        shards = {}
        for lock in self.config.directory.glob("*/locks/*.fetch"):
            shard = lock.parents[1] / lock.name.removesuffix(".fetch")
            with suppress(FileNotFoundError):
                shards[shard] = shard.stat()
        return shards

    def _reservations(self) -> list[Path]:
        return list(self.config.directory.glob(f"*/*{_FETCHING}"))

    def _remove_abandoned(self) -> None:
        """Removes the leftovers of killed downloads, whose fetch locks are free."""
        for reservation in self._reservations():
            name = reservation.name.removesuffix(_FETCHING).rpartition(".")[0]
            with held(reservation.parent / "locks" / f"{name}.fetch", wait=False) as free:
                if free:
                    remove_leftovers(reservation.with_name(name))


def mark_unread(shard: Path, now_ns: int) -> None:
    """Marks a shard as fetched, or still wanted, and unread."""
    os.utime(shard, ns=(now_ns, now_ns))  # atime == mtime means unread


def mark_used(shard: Path, now_ns: int) -> None:
    """Marks a shard as read now."""
    published_ns = shard.stat().st_mtime_ns
    os.utime(shard, ns=(max(now_ns, published_ns + 1), published_ns))  # atime > mtime means read


def is_unread(status: os.stat_result) -> bool:
    """Returns True if a shard was fetched but not read."""
    return status.st_atime_ns <= status.st_mtime_ns


def remove_leftovers(shard: Path) -> None:
    """Removes the leftovers of a killed download; the caller holds the shard's fetch lock."""
    for pattern in (f"{escape(shard.name)}.*{_FETCHING}", f".{escape(shard.name)}.*.part"):
        for leftover in shard.parent.glob(pattern):
            leftover.unlink(missing_ok=True)
