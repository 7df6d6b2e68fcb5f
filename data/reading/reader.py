"""Random access to the samples of a shard set, with every byte checked.

Local shards are read in place. Shards of an object store come whole through the node's cache; without a cache, each
sample is a ranged read, which suits a few samples and is slow for an epoch. Every sample is checked by the crc32 of its
index, because neither a disk nor a ranged read of S3 reports a flipped bit.
"""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.reading.cache import CacheBusyError, CachedShard, ShardCache
from data.reading.fetching import Tally, counted_retries, fetch_index, wrong_length
from data.shards.format import ShardError, ShardIndex, check_member, decode_mel, read_npy
from data.shards.manifest import Manifest, ShardEntry
from data.store.files import MissingObjectError, Store
from data.store.store import open_store
from pupujepa.errors import unreadable

_LOG = logging.getLogger(__name__)
# shards of one reader; the least recently used is closed first
_MAX_OPEN = 256


class BadSampleError(ShardError):
    """A sample that is damaged even when fetched again."""

    def __init__(self, message: str, uid: str = ""):
        super().__init__(message)
        self.uid = uid


@dataclass(frozen=True)
class RawSample:
    """One checked sample: stored [T, F], which `data.shards.format.decode_mel` decodes."""

    uid: str
    stored: NDArray[Any]
    info: dict[str, Any]


class OpenShard(Protocol):
    """An open shard."""

    index: ShardIndex

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Returns up to `length` bytes from `offset`; fewer only at the end of the shard."""

    def close(self) -> None:
        """Releases the shard."""


class ShardAccess(Protocol):
    """A way to open shards."""

    def open(self, entry: ShardEntry) -> OpenShard:
        """Opens a shard. Raises ShardError or StoreError if it is missing, cut, or has a wrong index."""

    def reopen(self, entry: ShardEntry, damaged: Any) -> OpenShard:
        """Closes `damaged` and opens the shard again, from its source."""


class ShardReader:
    """A reader of samples by (shard, sample of shard).

    Args:
        url: folder of the manifest.
        cache: for shards of an object store; local shards need none.
    """

    def __init__(self, url: str, manifest: Manifest, *, cache: ShardCache | None = None, tally: Tally | None = None):
        self.url, self.manifest, self.tally = url, manifest, tally or Tally()
        self._access = _choose_access(open_store(url), cache, self.tally)
        self._open_shards: OrderedDict[int, OpenShard] = OrderedDict()
        self._reopened: set[int] = set()

    def read(self, shard: int, index: int) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Returns (log-mel [T, F], not normalised, info) of sample `index` of shard `shard`.

        Raises:
            BadSampleError: the sample is damaged. ShardError, StoreError: the shard is missing, cut or unreachable.
        """
        sample = self.read_raw(shard, index)
        return decode_mel(sample.stored, lo=self.manifest.lo, hi=self.manifest.hi), sample.info

    def read_raw(self, shard: int, index: int) -> RawSample:
        """Returns a stored sample; reads a damaged one again, once per open shard, from the shard's source."""
        try:
            return self._read_checked(shard, index)
        except BadSampleError as error:
            if shard in self._reopened:
                raise
            _LOG.warning("%s; reading it again", error)
            self.tally.add("retries")
        self._reopened.add(shard)  # only once: a second failure is damage at the source
        damaged = self._open_shards.pop(shard)
        self._open_shards[shard] = self._access.reopen(self.manifest.shards[shard], damaged)
        return self._read_checked(shard, index)

    def uid(self, shard: int, index: int) -> str:
        """Returns the uid of a sample in the index."""
        return self._shard(shard).index.uid[index]

    def keep_only(self, shards: Collection[int]) -> None:
        """Closes all other shards, so that the cache may evict them."""
        for shard in [shard for shard in self._open_shards if shard not in shards]:
            self._open_shards.pop(shard).close()
            self._reopened.discard(shard)

    def close(self) -> None:
        """Closes all shards; the reader can still be used."""
        self.keep_only(())

    def _read_checked(self, shard: int, sample: int) -> RawSample:
        entry = self.manifest.shards[shard]
        opened = self._shard(shard)
        index, uid = opened.index, opened.index.uid[sample]
        json_offset, mel_offset = index.json_offset[sample], index.mel_offset[sample]
        # one read for both members, which are adjacent
        start = min(json_offset, mel_offset)
        stop = max(json_offset + index.json_bytes[sample], mel_offset + index.mel_bytes[sample])
        try:
            span = opened.read(start, stop - start)
        except OSError as error:
            raise unreadable(self._location(entry), error) from error
        if len(span) != stop - start:
            raise ShardError(wrong_length(self._location(entry), start + len(span), entry))
        self.tally.add("bytes_read", len(span) if not isinstance(opened, _FromCache) else 0)
        mel_npy = memoryview(span)[mel_offset - start : mel_offset - start + index.mel_bytes[sample]]
        info_json = bytes(span[json_offset - start : json_offset - start + index.json_bytes[sample]])
        where = f"sample {uid} of {self._location(entry)}"
        try:
            check_member(mel_npy, index.mel_crc32[sample], uid=uid, member="mel.npy")
            check_member(info_json, index.json_crc32[sample], uid=uid, member="json")
            stored_TF, info = _decode(mel_npy, info_json)
        except ValueError as error:
            raise BadSampleError(f"{where} is damaged: {error}", uid) from error
        return RawSample(uid, stored_TF, info)

    def _shard(self, shard: int) -> OpenShard:
        if shard not in self._open_shards:
            while len(self._open_shards) >= _MAX_OPEN:
                self._open_shards.popitem(last=False)[1].close()
            self._open_shards[shard] = self._access.open(self.manifest.shards[shard])
        self._open_shards.move_to_end(shard)  # most recently used
        return self._open_shards[shard]

    def _location(self, entry: ShardEntry) -> str:
        return f"{self.url.rstrip('/')}/{entry.name}"


def _choose_access(store: Store, cache: ShardCache | None, tally: Tally) -> ShardAccess:
    if store.local_path() is not None:
        return _InPlace(store, tally)
    remote = _Remote(store, tally)  # ranged reads without a cache
    return remote if cache is None else _ThroughCache(cache, remote)


def _decode(mel_npy: bytes | memoryview, info_json: bytes) -> tuple[NDArray[Any], dict[str, Any]]:
    """Returns (stored array, info). Raises ValueError if a member with a right crc32 cannot be decoded."""
    stored_TF, info = read_npy(mel_npy), json.loads(info_json)
    if stored_TF.ndim != 2 or stored_TF.dtype not in (np.uint8, np.float16) or not len(stored_TF):
        raise ValueError(f"its array is {stored_TF.dtype} {list(stored_TF.shape)}, not uint8 or float16 [T, F]")
    return stored_TF, info


def _read(file: int, offset: int, length: int) -> memoryview:
    # into writeable memory, which torch takes without a copy
    content = np.empty(length, dtype=np.uint8).data
    return content[: os.preadv(file, [content], offset)]  # positional, so threads and forks share no offset


class _FromFile:
    """A local shard."""

    def __init__(self, file: int, index: ShardIndex):
        self.file, self.index = file, index

    def read(self, offset: int, length: int) -> memoryview:
        return _read(self.file, offset, length)

    def close(self) -> None:
        os.close(self.file)


class _InPlace:
    def __init__(self, store: Store, tally: Tally):
        self.store, self.tally = store, tally

    def open(self, entry: ShardEntry) -> OpenShard:
        _, index = fetch_index(self.store, entry, tally=self.tally)
        path = self.store.local_path(entry.name)
        assert path is not None
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # not inherited by workers
        except FileNotFoundError as error:
            raise MissingObjectError(missing(str(path))) from error
        except OSError as error:
            raise unreadable(path, error) from error
        size = os.fstat(file).st_size
        if size != entry.bytes:
            os.close(file)
            raise ShardError(wrong_length(str(path), size, entry))
        return _FromFile(file, index)

    def reopen(self, entry: ShardEntry, damaged: Any) -> OpenShard:
        damaged.close()
        return self.open(entry)


class _FromStore:
    """A shard of an object store, by ranged reads."""

    def __init__(self, store: Store, entry: ShardEntry, index: ShardIndex, tally: Tally):
        self.store, self.entry, self.index, self.tally = store, entry, index, tally

    def read(self, offset: int, length: int) -> bytes:
        with counted_retries(self.store, self.tally):
            return self.store.read_range(self.entry.name, offset, length=length)

    def close(self) -> None:
        pass


class _Remote:
    def __init__(self, store: Store, tally: Tally):
        self.store, self.tally = store, tally

    def open(self, entry: ShardEntry) -> OpenShard:
        _, index = fetch_index(self.store, entry, tally=self.tally)
        size = self.store.size(entry.name)
        if size != entry.bytes:
            raise ShardError(wrong_length(self.store.locate(entry.name), size, entry))
        return _FromStore(self.store, entry, index, self.tally)

    def reopen(self, entry: ShardEntry, damaged: Any) -> OpenShard:
        return self.open(entry)


class _FromCache:
    """A shard in the node's cache."""

    def __init__(self, cached: CachedShard):
        self.cached, self.index = cached, cached.index

    def read(self, offset: int, length: int) -> memoryview:
        return _read(self.cached.file, offset, length)

    def close(self) -> None:
        self.cached.close()


class _ThroughCache:
    def __init__(self, cache: ShardCache, beside: _Remote):
        self.cache, self.beside = cache, beside

    def open(self, entry: ShardEntry) -> OpenShard:
        try:
            return _FromCache(self.cache.open(entry))
        except CacheBusyError:  # the cache has said so
            return self.beside.open(entry)

    def reopen(self, entry: ShardEntry, damaged: Any) -> OpenShard:
        if isinstance(damaged, _FromStore):
            return self.open(entry)
        try:
            return _FromCache(self.cache.renew(entry, damaged.cached))
        except CacheBusyError:
            return self.beside.open(entry)


def missing(location: str) -> str:
    """Returns the message about a shard that is in the manifest but not in the store."""
    return (
        f"shard {location} is listed in the manifest but does not exist, so its samples would be lost; restore it from "
        "a copy or run `python -m data build` again"
    )
