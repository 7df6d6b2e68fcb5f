"""The node's cache of an object store's shards: one download per node, a byte budget, pins.

All processes of a node share the cache through `flock`, which the kernel releases when a process dies: `kill -9` leaves
no stale lock. Readers share a lock on the shard itself; eviction takes it exclusively. The one process that downloads
holds `locks/<shard>.fetch`, and the others wait. An evicted shard leaves no file, so the cache does not slow down with
the shards that it has seen. A shard appears under its name only after its length and the crc32 of its members were
checked. `data.reading.room` keeps the budget.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data.reading.fetching import Tally, fetch_index, fetch_shard
from data.reading.room import (
    UNREAD_GRACE_S,
    CacheConfig,
    CacheRoom,
    fetch_lock,
    is_unread,
    mark_unread,
    mark_used,
)
from data.shards.format import ShardError, ShardIndex, index_name, read_index
from data.shards.manifest import ShardEntry
from data.store.files import Store, StoreError
from pupujepa.durable import FULL_DISK, atomic_file
from pupujepa.errors import UserError
from pupujepa.locks import LockTakenError, held, open_locked

_LOG = logging.getLogger(__name__)


class CacheError(UserError):
    """The cache has no room for a shard, or its folder is unusable."""


class CacheBusyError(CacheError):
    """A process that makes no progress holds a lock of the cache; read the store without the cache."""


class CachedShard:
    """An open shard of the cache, kept from eviction until `close`.

    Args:
        file: handle that holds a shared lock on the shard.
        closed: is called with the time of the last use.
    """

    def __init__(self, file: int, index: ShardIndex, *, closed: Callable[[int], None]):
        self.file, self.index = file, index
        self._closed = closed

    @property
    def inode(self) -> int:
        """Distinguishes this copy from one that replaces it."""
        return os.fstat(self.file).st_ino

    def close(self) -> None:
        """Closes and so unlocks the file; call it once."""
        used_ns = os.fstat(self.file).st_atime_ns
        os.close(self.file)
        self._closed(used_ns)


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
        self._clock_ns = clock_ns
        self._failed: dict[str, tuple[float, StoreError]] = {}  # failures of the prefetching thread, by shard
        self._shards = config.directory / namespace[:16]  # one folder per shard set
        try:
            (self._shards / "locks").mkdir(parents=True, exist_ok=True)
            self._room = CacheRoom(config, tally=self.tally, free_bytes=free_bytes, clock_ns=clock_ns)
        except OSError as error:
            raise CacheError(
                f"cache_dir {config.directory} cannot be made ({error.strerror}), so no shard can be kept; choose a "
                "folder on this node's disk that you may write to"
            ) from error

    def open(self, entry: ShardEntry) -> CachedShard:
        """Returns the shard, downloaded if absent; close it when done.

        Raises:
            StoreError: it cannot be fetched. ShardError: it differs from the manifest. CacheError: no room.
            CacheBusyError: a process that makes no progress holds a lock.
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
        with self._errors_named(entry):
            if self._is_published(entry):
                self._keep_unread(entry)
                return True
            try:
                with held(fetch_lock(self._path(entry))):
                    file = self._fetch(entry, ahead=True, instead_of=None)
            except LockTakenError:
                return True  # another process is fetching it
            except StoreError as error:
                self._failed[entry.name] = (time.monotonic(), error)
                raise
            if file is not None:
                os.close(file)
            return file is not None

    def _open(self, entry: ShardEntry, *, instead_of: int | None) -> CachedShard:
        path = self._path(entry)
        with self._errors_named(entry), ExitStack() as undo:
            file = self._locked(entry, instead_of=instead_of)
            self.tally.add("cache_hits" if file is not None else "cache_misses")
            if file is None:
                began = time.monotonic()
                # waits for a download by another process
                with self._room.locked(fetch_lock(path), progress=lambda: self._room.progress_of(path)):
                    self._raise_failure_since(began, entry)
                    file = self._fetch(entry, ahead=False, instead_of=instead_of)
            assert file is not None, "only prefetching returns without a shard"
            undo.callback(os.close, file)
            mark_used(file, self._clock_ns())
            shard = CachedShard(file, self._read_index(entry), closed=lambda used_ns: self._room.closed(path, used_ns))
            undo.pop_all()  # success: the shard owns the file now
        return shard

    def _locked(self, entry: ShardEntry, *, instead_of: int | None) -> int | None:
        """Opens the shard, locked against eviction; None if it is not in the cache, or being evicted."""
        with ExitStack() as undo:
            try:
                file = open_locked(self._path(entry), shared=True)
            except (FileNotFoundError, BlockingIOError):
                return None
            undo.callback(os.close, file)
            status = os.fstat(file)
            # evicted or replaced before we had the lock?
            if status.st_nlink == 0 or status.st_ino == instead_of or not self._is_published(entry):
                return None
            undo.pop_all()
        return file

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

    def _fetch(self, entry: ShardEntry, *, ahead: bool, instead_of: int | None) -> int | None:
        """Returns the shard, opened and locked, or None if prefetching finds no room.

        The caller holds the fetch lock.
        """
        file = self._locked(entry, instead_of=instead_of)
        if file is not None:
            return file  # the previous holder of the lock fetched it
        reservation = self._reserve(entry, ahead=ahead)
        if reservation is None:
            return None
        with ExitStack() as undo:
            undo.callback(self._room.release, reservation)
            index = self._download_index(entry)
            undo.callback(self._index_path(entry).unlink, missing_ok=True)
            fetch_shard(self.store, entry, index, reservation, tally=self.tally)
            mark_unread(reservation, self._clock_ns())
            file = open_locked(reservation, shared=True)  # so that it cannot be evicted before its first read
            undo.callback(os.close, file)
            reservation.replace(self._path(entry))  # atomic: readers see a whole shard or none
            undo.pop_all()
        return file

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

    def _is_published(self, entry: ShardEntry) -> bool:
        try:
            status = self._path(entry).stat()
        except FileNotFoundError:
            return False
        # the index is published first
        return status.st_size == entry.bytes and self._index_path(entry).exists()

    def _path(self, entry: ShardEntry) -> Path:
        return self._shards / entry.name

    def _index_path(self, entry: ShardEntry) -> Path:
        return self._shards / index_name(entry.name)

    def _no_room(self, entry: ShardEntry, reason: str) -> str:
        return (
            f"no room in cache_dir {self.config.directory} for shard {entry.name} of {entry.bytes} bytes: {reason}; "
            "free space there, raise cache_bytes, lower window_shards or lanes, or choose another cache_dir"
        )

    @contextmanager
    def _errors_named(self, entry: ShardEntry) -> Iterator[None]:
        """Turns errors of the folder and its locks into a CacheError; errors of the store pass."""
        try:
            yield
        except LockTakenError as error:
            raise CacheBusyError(
                f"{error.holder} holds a lock of cache_dir {self.config.directory} and makes no progress, so shard "
                f"{entry.name} cannot be kept; continue or end that process"
            ) from error
        except OSError as error:
            if error.errno in FULL_DISK:
                raise CacheError(self._no_room(entry, f"the disk is full ({error.strerror})")) from error
            raise CacheError(
                f"cache_dir {self.config.directory} cannot keep shard {entry.name} ({error.strerror or error}), so it "
                "cannot be read; repair the disk or its permissions, or choose another cache_dir"
            ) from error
