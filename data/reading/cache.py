"""The node's cache of an object store's shards: one download per node, a byte budget, pins.

All processes of a node share the cache through `flock`, which the kernel releases when a process dies: `kill -9` leaves
no stale lock. Each shard has two lock files. Readers hold `<shard>.pin` shared; eviction takes it exclusively. The one
process that downloads holds `<shard>.fetch`, and the others wait. A shard appears under its name only after its length
and the crc32 of its members were checked. `data.reading.room` keeps the budget.
"""

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data.reading.fetching import fetch_index, fetch_shard
from data.reading.room import (
    UNREAD_GRACE_S,
    CacheConfig,
    CacheRoom,
    is_unread,
    mark_unread,
    mark_used,
    remove_leftovers,
)
from data.reading.tally import Tally
from data.shards.format import ShardError, ShardIndex, index_name, read_index
from data.shards.manifest import ShardEntry
from data.store.files import Store, StoreError
from pupujepa.durable import atomic_file
from pupujepa.errors import UserError
from pupujepa.locks import held, pin

_LOG = logging.getLogger(__name__)
_FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class CacheError(UserError):
    """The cache has no room for a shard, or its folder is unusable."""


class CachedShard:
    """An open shard of the cache, kept from eviction until `close`."""

    def __init__(self, file: int, index: ShardIndex, *, pin: int):
        self.file, self.index = file, index
        self._pin = pin

    @property
    def inode(self) -> int:
        """Distinguishes this copy from one that replaces it."""
        return os.fstat(self.file).st_ino

    def close(self) -> None:
        """Closes the file and unpins the shard; call it once."""
        os.close(self.file)
        os.close(self._pin)


class ShardCache:
    """The shards of one set, on this node.

    Args:
        store: of the set.
        namespace: manifest digest; two sets may have shards of equal names.
        free_bytes, clock_ns: as in `CacheRoom`.

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
        self._room = CacheRoom(config, tally=self.tally, free_bytes=free_bytes, clock_ns=clock_ns)
        self._clock_ns = clock_ns
        self._failed: dict[str, tuple[float, StoreError]] = {}  # failures of the prefetching thread, by shard
        self._shards = config.directory / namespace[:16]  # one folder per shard set
        self._locks = self._shards / "locks"
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(
                f"cache_dir {config.directory} cannot be made ({error.strerror}), so no shard can be kept; choose a "
                "folder on this node's disk that you may write to"
            ) from error

    def open(self, entry: ShardEntry) -> CachedShard:
        """Returns the shard, downloaded if absent; close it when done.

        Raises:
            StoreError: it cannot be fetched. ShardError: it differs from the manifest. CacheError: no room.
        """
        return self._open(entry, instead_of=None)

    def renew(self, entry: ShardEntry, damaged: CachedShard) -> CachedShard:
        """Closes `damaged` and returns the shard, fetched again unless another process has replaced it."""
        try:
            # closed last: while it is open, no new file can get its inode
            return self._open(entry, instead_of=damaged.inode)
        finally:
            damaged.close()

    def holds(self, entry: ShardEntry) -> bool:
        """Returns True if the shard is in the cache."""
        return self._is_published(entry)

    def prefetch(self, entry: ShardEntry) -> bool:
        """Downloads the shard if it is absent and fits without evicting unread shards.

        Returns:
            True if it is in the cache or on its way.

        Raises:
            StoreError, ShardError, CacheError: like `open`.
        """
        with self._disk_errors_named(entry):
            if self._is_published(entry):
                self._keep_unread(entry)
                return True
            with held(self._lock(entry, "fetch"), wait=False) as free:  # another process is fetching it if not free
                try:
                    return not free or self._fetch(entry, ahead=True, instead_of=None)
                except StoreError as error:
                    self._failed[entry.name] = (time.monotonic(), error)
                    raise

    def _open(self, entry: ShardEntry, *, instead_of: int | None) -> CachedShard:
        # pinned before it is fetched, so that it cannot be evicted before its first read
        with self._disk_errors_named(entry), ExitStack() as undo:
            handle = pin(self._lock(entry, "pin"))
            undo.callback(os.close, handle)  # closing the file releases its lock
            hit = self._is_published(entry, instead_of=instead_of)
            if not hit:
                began = time.monotonic()
                with held(self._lock(entry, "fetch")):  # waits for a download by another process
                    self._raise_failure_since(began, entry)
                    self._fetch(entry, ahead=False, instead_of=instead_of)
            self.tally.add("cache_hits" if hit else "cache_misses")
            file = os.open(self._path(entry), os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, file)
            mark_used(self._path(entry), self._clock_ns())
            shard = CachedShard(file, self._read_index(entry), pin=handle)
            undo.pop_all()  # success: the shard owns file and pin now
        return shard

    def _raise_failure_since(self, began: float, entry: ShardEntry) -> None:
        """Raises the error of a prefetch that the reader waited for: it has used up the retries."""
        failed_at, error = self._failed.get(entry.name, (0.0, None))
        if error is not None and failed_at >= began:
            raise error

    def _read_index(self, entry: ShardEntry) -> ShardIndex:
        try:
            return read_index(self._index_path(entry), expected_sha256=entry.index_sha256)
        except ShardError:
            _LOG.warning("%s is damaged; fetching it again", self._index_path(entry))
            return self._download_index(entry)

    def _fetch(self, entry: ShardEntry, *, ahead: bool, instead_of: int | None) -> bool:
        """Downloads the shard; the caller holds its fetch lock. Returns False if prefetching finds no room."""
        if self._is_published(entry, instead_of=instead_of):
            return True  # the previous holder of the lock fetched it
        remove_leftovers(self._path(entry))
        reservation = self._reserve(entry, ahead=ahead)
        if reservation is None:
            return False
        try:
            index = self._download_index(entry)
            fetch_shard(self.store, entry, index, reservation, tally=self.tally)
            mark_unread(reservation, self._clock_ns())
            reservation.replace(self._path(entry))  # atomic: readers see a whole shard or none
        finally:
            reservation.unlink(missing_ok=True)  # after success it is already gone
        return True

    def _download_index(self, entry: ShardEntry) -> ShardIndex:
        content, index = fetch_index(self.store, entry, tally=self.tally)
        with atomic_file(self._index_path(entry)) as temporary:
            temporary.write_bytes(content)
        return index

    def _reserve(self, entry: ShardEntry, *, ahead: bool) -> Path | None:
        if entry.bytes > self.config.budget_bytes:
            raise CacheError(self._no_room(entry, f"it alone is larger than cache_bytes {self.config.budget_bytes}"))
        reservation = self._room.reserve(self._path(entry), entry.bytes, ahead=ahead)
        if isinstance(reservation, Path):
            return reservation
        if ahead:
            return None
        reason = f"{reservation.lacking_bytes} bytes are lacking and all other shards are in use"
        raise CacheError(self._no_room(entry, reason))

    def _keep_unread(self, entry: ShardEntry) -> None:
        """Extends the eviction grace period of a prefetched shard that is still needed."""
        status, now_ns = self._path(entry).stat(), self._clock_ns()
        if is_unread(status) and now_ns - status.st_mtime_ns > UNREAD_GRACE_S / 4 * 1e9:
            mark_unread(self._path(entry), now_ns)

    def _is_published(self, entry: ShardEntry, *, instead_of: int | None = None) -> bool:
        try:
            status = self._path(entry).stat()
        except FileNotFoundError:
            return False
        # the index is published first
        return status.st_size == entry.bytes and status.st_ino != instead_of and self._index_path(entry).exists()

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

    @contextmanager
    def _disk_errors_named(self, entry: ShardEntry) -> Iterator[None]:
        """Turns an OSError of the folder into a CacheError; errors of the store pass."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL_DISK:
                raise CacheError(self._no_room(entry, f"the disk is full ({error.strerror})")) from error
            raise CacheError(
                f"cache_dir {self.config.directory} cannot keep shard {entry.name} ({error.strerror or error}), so it "
                "cannot be read; repair the disk or its permissions, or choose another cache_dir"
            ) from error
