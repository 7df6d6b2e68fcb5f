"""Shards of an object store on the node's own disk: one download per node, a byte budget, pins on what is in use.

Every process of a node may use one cache at once; they meet only through `flock`, which the kernel lets go of when a
process dies, so a `kill -9` leaves no stale lock. Each shard has two lock files. `<shard>.pin` is held shared by
whoever reads the shard and taken exclusively to evict it. `<shard>.fetch` is held by the one process that downloads it,
while the others wait. A shard appears under its name only after its length and sha256 were compared with the manifest.

The budget counts every shard of the folder, of all runs, and what is being downloaded. Least recently used goes first.
"""

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from data.fetching import fetch_index, fetch_shard
from data.files import Store
from data.manifest import ShardEntry
from data.shards import ShardError, ShardIndex, index_name, read_index
from data.tally import Tally
from pupujepa.durable import atomic_file
from pupujepa.errors import UserError

_LOG = logging.getLogger(__name__)
_FETCHING = ".fetching"
_FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# a shard fetched ahead and not yet read is kept from other prefetching for so long: longer, and its reader has died
_UNREAD_GRACE_NS = 600 * 10**9


class CacheError(UserError):
    """The cache cannot take a shard: no room, or no usable folder."""


class CachedShard:
    """An open shard of the cache, kept from eviction until `close`."""

    def __init__(self, file: int, index: ShardIndex, *, pin: int):
        self.file, self.index = file, index
        self._pin = pin

    @property
    def inode(self) -> int:
        """Tells this copy from one that replaces it."""
        return os.fstat(self.file).st_ino

    def close(self) -> None:
        """Closes the file and lets the shard be evicted; call it once."""
        os.close(self.file)
        os.close(self._pin)


@dataclass(frozen=True)
class CacheConfig:
    """Where and how much.

    directory: on the node's own disk; `flock` must work there.
    budget_bytes: shards never take more, whoever put them there.
    patience_s: how long to wait for others to let go of shards before there is said to be no room.
    """

    directory: Path
    budget_bytes: int
    patience_s: float = 60.0


class ShardCache:
    """The shards of one set, on this node.

    Args:
        store: where the set lies.
        namespace: manifest digest; two sets may hold shards of equal names.
        free_bytes: returns the free space of the disk that holds a path.
        clock_ns: returns wall-clock nanoseconds, by which shards are ranked for eviction.

    Raises:
        CacheError: the folder cannot be made.
    """

    def __init__(
        self,
        config: CacheConfig,
        *,
        store: Store,
        namespace: str,
        tally: Tally | None = None,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        clock_ns: Callable[[], int] = time.time_ns,
    ):
        self.config, self.store, self.tally = config, store, tally or Tally()
        self._free_bytes, self._clock_ns = free_bytes, clock_ns
        self._shards = config.directory / namespace[:16]
        self._locks = self._shards / "locks"
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(
                f"cache_dir {config.directory} cannot be made ({error.strerror}), so no shard can be kept; choose a "
                "folder on this node's disk that you may write to"
            ) from error

    def open(self, entry: ShardEntry) -> CachedShard:
        """Returns the shard, downloaded if need be; close it when done.

        Raises:
            StoreError: it cannot be fetched. ShardError: what came is not what the manifest says.
            CacheError: there is no room for it.
        """
        return self._open(entry, instead_of=None)

    def renew(self, entry: ShardEntry, damaged: CachedShard) -> CachedShard:
        """Closes `damaged` and returns the shard fetched again, unless another process has replaced it already."""
        try:
            # closed last: as long as it is open, no new file can get its inode
            return self._open(entry, instead_of=damaged.inode)
        finally:
            damaged.close()

    def holds(self, entry: ShardEntry) -> bool:
        """Whether the shard is in the cache now."""
        return self._is_published(entry)

    def prefetch(self, entry: ShardEntry) -> bool:
        """Downloads the shard if nobody has or does and there is room without evicting what others wait for.

        Returns:
            Whether it is in the cache now, or on its way.
        """
        if self._is_published(entry):
            return True
        with _held(self._lock(entry, "fetch"), wait=False) as free:
            return not free or self._fetch(entry, ahead=True, instead_of=None)

    def _open(self, entry: ShardEntry, *, instead_of: int | None) -> CachedShard:
        # pinned before it is fetched, so that it cannot be evicted between its arrival and its first read
        with ExitStack() as undo:
            pin = _flock(self._lock(entry, "pin"), fcntl.LOCK_SH)
            undo.callback(os.close, pin)
            hit = self._is_published(entry, instead_of=instead_of)
            if not hit:
                with _held(self._lock(entry, "fetch")):
                    self._fetch(entry, ahead=False, instead_of=instead_of)
            self.tally.add("cache_hits" if hit else "cache_misses")
            file = os.open(self._path(entry), os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, file)
            self._mark_used(entry)
            shard = CachedShard(file, self._read_index(entry), pin=pin)
            undo.pop_all()
        return shard

    def _read_index(self, entry: ShardEntry) -> ShardIndex:
        try:
            return read_index(self._index_path(entry), expected_sha256=entry.index_sha256)
        except ShardError:
            _LOG.warning("%s is damaged; fetching it again", self._index_path(entry))
            return self._download_index(entry)

    def _fetch(self, entry: ShardEntry, *, ahead: bool, instead_of: int | None) -> bool:
        """Brings the shard into the cache; the caller holds its fetch lock. False: ahead of need, and no room."""
        if self._is_published(entry, instead_of=instead_of):
            return True  # by the process whose lock was waited for
        _remove_leftovers(self._shards, entry.name)
        reservation = self._reserve(entry, ahead=ahead)
        if reservation is None:
            return False
        try:
            self._download_index(entry)
            fetch_shard(self.store, entry, reservation, tally=self.tally)
            now = self._clock_ns()
            os.utime(reservation, ns=(now, now))  # equal times mean: not read yet
            reservation.replace(self._path(entry))
        except OSError as error:
            if error.errno not in _FULL_DISK:
                raise
            raise CacheError(self._no_room(entry, f"the disk is full ({error.strerror})")) from error
        finally:
            reservation.unlink(missing_ok=True)
        return True

    def _download_index(self, entry: ShardEntry) -> ShardIndex:
        content, index = fetch_index(self.store, entry, tally=self.tally)
        with atomic_file(self._index_path(entry)) as temporary:
            temporary.write_bytes(content)
        return index

    def _reserve(self, entry: ShardEntry, *, ahead: bool) -> Path | None:
        """Makes room, marks it as taken by an empty file that bears the size in its name, and returns that file."""
        if entry.bytes > self.config.budget_bytes:
            raise CacheError(self._no_room(entry, f"it alone is larger than cache_bytes {self.config.budget_bytes}"))
        give_up_at = time.monotonic() + self.config.patience_s
        while True:
            with _held(self.config.directory / "budget.lock"):
                self._remove_abandoned()
                lacking = self._evict(self._lacking_bytes(entry.bytes), sparing_unread=ahead)
                if lacking <= 0:
                    reservation = self._shards / f"{entry.name}.{entry.bytes}{_FETCHING}"
                    reservation.touch()
                    return reservation
            if ahead:
                return None
            if time.monotonic() > give_up_at:
                reason = f"{lacking} bytes are lacking and all other shards are in use"
                raise CacheError(self._no_room(entry, reason))
            time.sleep(0.05)

    def _lacking_bytes(self, needed: int) -> int:
        """Returns how many bytes must go before `needed` more fit into the budget and onto the disk."""
        kept = sum(status.st_size for status in self._all_shards().values())
        coming = sum(int(reservation.name.split(".")[-2]) for reservation in self._reservations())
        over_budget = kept + coming + needed - self.config.budget_bytes
        over_disk = coming + needed - self._free_bytes(self.config.directory)
        return max(over_budget, over_disk)

    def _evict(self, lacking: int, *, sparing_unread: bool) -> int:
        """Removes shards that nobody reads, least recently used first; returns the bytes still lacking."""
        spared_after = self._clock_ns() - _UNREAD_GRACE_NS
        for shard, status in sorted(self._all_shards().items(), key=lambda item: item[1].st_atime_ns):
            if lacking <= 0:
                break
            unread = status.st_atime_ns <= status.st_mtime_ns and status.st_mtime_ns > spared_after
            if sparing_unread and unread:
                continue
            with _held(shard.parent / "locks" / f"{shard.name}.pin", wait=False) as free:
                if free:
                    _LOG.info("evicting %s", shard)
                    shard.unlink(missing_ok=True)
                    shard.with_name(index_name(shard.name)).unlink(missing_ok=True)
                    lacking -= status.st_size
        return lacking

    def _all_shards(self) -> dict[Path, os.stat_result]:
        """Returns the published shards of all sets in the folder; each was once fetched under its lock."""
        shards = {}
        for lock in self.config.directory.glob("*/locks/*.fetch"):
            shard = lock.parents[1] / lock.name.removesuffix(".fetch")
            with suppress(FileNotFoundError):
                shards[shard] = shard.stat()
        return shards

    def _reservations(self) -> list[Path]:
        return list(self.config.directory.glob(f"*/*{_FETCHING}"))

    def _remove_abandoned(self) -> None:
        """Removes what downloads that were killed left: their fetch locks are free."""
        for reservation in self._reservations():
            name = reservation.name.removesuffix(_FETCHING).rpartition(".")[0]
            with _held(reservation.parent / "locks" / f"{name}.fetch", wait=False) as free:
                if free:
                    _remove_leftovers(reservation.parent, name)

    def _is_published(self, entry: ShardEntry, *, instead_of: int | None = None) -> bool:
        try:
            status = self._path(entry).stat()
        except FileNotFoundError:
            return False
        return status.st_size == entry.bytes and status.st_ino != instead_of and self._index_path(entry).exists()

    def _mark_used(self, entry: ShardEntry) -> None:
        published_ns = self._path(entry).stat().st_mtime_ns
        os.utime(self._path(entry), ns=(max(self._clock_ns(), published_ns + 1), published_ns))

    def _path(self, entry: ShardEntry) -> Path:
        return self._shards / entry.name

    def _index_path(self, entry: ShardEntry) -> Path:
        return self._shards / index_name(entry.name)

    def _lock(self, entry: ShardEntry, kind: str) -> Path:
        return self._locks / f"{entry.name}.{kind}"

    def _no_room(self, entry: ShardEntry, reason: str) -> str:
        return (
            f"no room in cache_dir {self.config.directory} for shard {entry.name} of {entry.bytes} bytes: {reason}; "
            "free space there, raise cache_bytes, lower window_shards or lanes, or choose another cache_dir"
        )


def _remove_leftovers(shards: Path, name: str) -> None:
    """Removes what a killed download of a shard left; the caller holds its fetch lock, so nobody is writing it."""
    for pattern in (f"{escape(name)}.*{_FETCHING}", f".{escape(name)}.*.part"):
        for leftover in shards.glob(pattern):
            leftover.unlink(missing_ok=True)


@contextmanager
def _held(lock: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock exclusively within the block; without `wait` the block learns whether it was free."""
    try:
        handle = _flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(handle)


def _flock(lock: Path, operation: int) -> int:
    """Returns a handle that holds the lock until it is closed, or until this process is gone."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, operation)
    except BaseException:
        os.close(handle)
        raise
    return handle
