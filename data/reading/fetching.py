"""Downloads of shards and indices, checked against the manifest; a mismatch is fetched again."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import chain, repeat
from mmap import ACCESS_READ, mmap
from pathlib import Path

from data.shards.format import ShardError, ShardIndex, check_member, index_name, read_index
from data.shards.manifest import ShardEntry
from data.store.files import Store

_LOG = logging.getLogger(__name__)


COUNTED = ("bytes_read", "retries", "cache_hits", "cache_misses", "evictions", "stand_ins", "padded")
"""bytes_read: from the store or local shards. cache_hits, cache_misses: shards opened without and with a download.
evictions: shards removed from the cache. stand_ins: draws whose damaged sample was replaced. padded: samples shorter
than the crop."""


class Tally:
    """Named counts that the reading and prefetching threads share."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """Adds to one of COUNTED."""
        assert name in COUNTED, name
        with self._lock:
            self._counts[name] += amount

    def take(self) -> Counter[str]:
        """Returns the counts since the last `take`."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return taken


def fetch_index(store: Store, entry: ShardEntry, *, tally: Tally) -> tuple[bytes, ShardIndex]:
    """Returns the index of a shard, as bytes and parsed; reads it again if it came damaged.

    Raises:
        StoreError: it cannot be read. ShardError: it differs from the manifest.
    """
    name = index_name(entry.name)
    origin = store.locate(name)
    with counted_retries(store, tally):
        content = store.read(name)
        if sha256(content).hexdigest() != entry.index_sha256:
            tally.add("retries")
            content = store.read(name)
    tally.add("bytes_read", len(content))
    index = read_index(content, origin=origin, expected_sha256=entry.index_sha256)
    if len(index) != entry.samples:
        raise ShardError(
            f"{origin} lists {len(index)} samples and the manifest {entry.samples}, so samples would be lost; restore "
            "it or run `python -m data build` again"
        )
    return content, index


def fetch_shard(store: Store, entry: ShardEntry, index: ShardIndex, target: Path, *, tally: Tally) -> None:
    """Downloads a shard to the file `target` and checks every crc32; sha256 would take four times longer.

    A second copy with a damaged member is kept: samples are checked again when read, so one flipped bit in the store
    costs one sample instead of the run.

    Raises:
        StoreError: it cannot be read. ShardError: its length differs from the manifest.
    """
    location = store.locate(entry.name)
    for attempt in (1, 2):  # a fault of the wire rarely strikes twice
        with counted_retries(store, tally):
            size = store.download(entry.name, target)
        tally.add("bytes_read", size)
        damage = f"{size} bytes instead of {entry.bytes}" if size != entry.bytes else first_damage(target, index)
        if not damage:
            return
        if attempt == 1:
            tally.add("retries")
            _LOG.warning("%s came damaged (%s); fetching it again", location, damage)
    if size != entry.bytes:
        raise ShardError(wrong_length(location, size, entry))
    _LOG.warning("%s is damaged in the store (%s); others may be, and will be named when read", location, damage)


def first_damage(shard: Path, index: ShardIndex) -> str:
    """Returns the damage of the first damaged member; "" if all are whole."""
    mels = zip(index.uid, repeat("mel.npy"), index.mel_offset, index.mel_bytes, index.mel_crc32)
    infos = zip(index.uid, repeat("json"), index.json_offset, index.json_bytes, index.json_crc32)
    with shard.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content, memoryview(content) as view:
        for uid, member, offset, length, crc32 in chain(mels, infos):
            with view[offset : offset + length] as stored:
                try:
                    check_member(stored, crc32, uid=uid, member=member)
                except ShardError as error:
                    return str(error)
    return ""


def wrong_length(location: str, size: int, entry: ShardEntry) -> str:
    """Returns the message about a shard that was cut or overwritten."""
    cause = "truncated" if size < entry.bytes else "overwritten"
    return (
        f"shard {location} has {size} bytes and the manifest says {entry.bytes}: it was {cause}; restore it from a "
        "copy or run `python -m data build` again"
    )


@contextmanager
def counted_retries(store: Store, tally: Tally) -> Iterator[None]:
    """Adds this thread's retries within the block; the prefetching thread counts its own."""
    before = store.retries_of_this_thread
    try:
        yield
    finally:
        tally.add("retries", store.retries_of_this_thread - before)
