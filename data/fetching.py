"""Shards and their indices brought from a store and compared with the manifest; on a mismatch fetched once more."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path

from data.files import Store
from data.manifest import ShardEntry
from data.shards import ShardError, ShardIndex, index_name, read_index
from data.tally import Tally

_LOG = logging.getLogger(__name__)


def fetch_index(store: Store, entry: ShardEntry, *, tally: Tally) -> tuple[bytes, ShardIndex]:
    """Returns the sidecar of a shard, read twice if the first copy is damaged, as bytes and as an index.

    Raises:
        StoreError: it cannot be read. ShardError: it is not the one that the manifest names.
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


def fetch_shard(store: Store, entry: ShardEntry, target: Path, *, tally: Tally) -> None:
    """Downloads a shard to the file `target`.

    A second copy of the right length and a wrong digest is kept: every sample is checked by its own crc32 when it is
    read, so one flipped bit in the store costs one sample instead of the run.

    Raises:
        StoreError: it cannot be read. ShardError: its length is not the manifest's.
    """
    location = store.locate(entry.name)
    for attempt in (1, 2):
        with counted_retries(store, tally):
            size = store.download(entry.name, target)
        tally.add("bytes_read", size)
        with target.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        if (size, digest) == (entry.bytes, entry.sha256):
            return
        if attempt == 1:
            tally.add("retries")
            _LOG.warning("%s came with another length or sha256 than the manifest's; fetching it again", location)
    if size != entry.bytes:
        raise ShardError(wrong_length(location, size, entry))
    _LOG.warning("%s has another sha256 than the manifest's; its damaged samples will be named one by one", location)


def wrong_length(location: str, size: int, entry: ShardEntry) -> str:
    """Returns the message about a shard that was cut, or overwritten."""
    cause = "truncated" if size < entry.bytes else "overwritten"
    return (
        f"shard {location} has {size} bytes and the manifest says {entry.bytes}: it was {cause}; restore it from a "
        "copy or run `python -m data build` again"
    )


@contextmanager
def counted_retries(store: Store, tally: Tally) -> Iterator[None]:
    """Adds the retries that the store makes within the block, for this thread: prefetching goes on meanwhile."""
    before = store.retries_of_this_thread
    try:
        yield
    finally:
        tally.add("retries", store.retries_of_this_thread - before)
