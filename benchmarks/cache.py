"""A fetch into the node's cache after up to a million shards: CPU time, entries listed, files left.

  python -m benchmarks cache                            a million shards through room for 1,000
  python -m benchmarks cache --shards 100000 --keep     room for all
  python -m benchmarks cache --shards 1000 --left 200000     beside lock files of an older version
  python -m benchmarks cache --folder /dev/shm          where the cache is made

A fetch is all that `ShardCache.open` does for a shard that is absent: locks, reservation, eviction, index, download,
the crc32 of every member, publication. The shard has one small sample, so that the cache's own work is what is seen.
The store makes up its objects, and nothing is flushed to the disk. CPU time, user's and system's, hardly depends on
what runs beside.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks import arguments_of
from benchmarks.alternate import machine
from data.reading.cache import ShardCache
from data.reading.room import CacheConfig
from data.shards.format import sample_uid, write_index, write_shard
from data.shards.manifest import ShardEntry
from data.store.files import LocalStore

PREDICTION = (
    "1 ms a fetch at any number of shards, seen or kept; no folder of shards is listed but at the first reservation of "
    "a process and when its queue is empty, once in 1,000 evictions"
)
ROOM_SHARDS, MEASURED = 1000, 1000


class OneShard(LocalStore):
    """A store in which every name is the same shard."""

    def __init__(self, shard: bytes, index: bytes):
        super().__init__("/nowhere", root=Path("/nowhere"))
        self.shard, self.index = shard, index

    def read(self, path: str = "") -> bytes:
        """Returns the index."""
        return self.index

    def download(self, path: str, local_path: Path | str) -> int:
        """Writes the shard."""
        return Path(local_path).write_bytes(self.shard)


def main() -> None:
    """Prints a row for every number of shards."""
    args = parse(arguments_of("cache"))
    print(f"{machine()}\n\nprediction: {PREDICTION}\n")
    print("| shards seen | kept | CPU ms a fetch, median (90 %) | entries listed a fetch | files |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        leave_locks(Path(folder) / "set" / "locks", args.left)
        for row in measure(Path(folder), args.shards, room=args.shards if args.keep else ROOM_SHARDS):
            print(row, flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads what follows the benchmark's name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cache")
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--keep", action="store_true", help="room for all shards")
    parser.add_argument("--left", type=int, default=0, help="shards whose two lock files were left")
    parser.add_argument("--folder", type=Path, help="of the cache; default: the temporary folder")
    return parser.parse_args(arguments)


def leave_locks(folder: Path, shards: int) -> None:
    """Makes the lock files that were never removed once."""
    folder.mkdir(parents=True)
    for number in range(shards):
        for kind in ("fetch", "pin"):
            os.mknod(f"{folder}/old-{number:07d}.tar.{kind}")


def measure(folder: Path, shards: int, *, room: int) -> Iterator[str]:
    """Fetches shards of new names, and yields a row at each power of ten: the last fetches before it."""
    store, entry = one_shard()
    config = CacheConfig(folder, room * entry.bytes)
    cache = ShardCache(config, store=store, namespace="set")
    seconds: list[float] = []
    with counted_listings() as listed:
        for number in range(1, shards + 1):
            started = time.process_time()
            cache.open(ShardEntry(**{**vars(entry), "name": f"shard-{number:07d}.tar"})).close()
            seconds.append(time.process_time() - started)
            if number % MEASURED == 0 or number == shards:
                if str(number).strip("0") == "1" or number == shards:
                    yield _row(number, min(number, room), seconds, sum(listed), folder)
                seconds.clear()
                listed.clear()


def one_shard() -> tuple[OneShard, ShardEntry]:
    """Returns a shard with one sample, in a store, and its entry."""
    stream, uid = io.BytesIO(), sample_uid("track", 0)
    info = {"uid": uid, "track": "track", "source": "", "start_s": 0.0, "duration_s": 0.1, "frames": 8}
    written = write_shard(stream, [{"info": info, "mel": np.zeros((8, 128), np.uint8)}])
    index = write_index(written.index)
    entry = ShardEntry("", 1, 8, written.bytes, written.sha256, sha256(index).hexdigest())
    return OneShard(stream.getvalue(), index), entry


@contextmanager
def counted_listings() -> Iterator[list[int]]:
    """Yields the numbers of entries of the folders that are listed within the block."""
    counts: list[int] = []
    scandir, listdir = os.scandir, os.listdir

    def counted_listdir(path=None):
        names = listdir(path)
        counts.append(len(names))
        return names

    def counted_scandir(path=None):
        counts.append(len(listdir(path)))
        return scandir(path)

    with (
        patch("os.scandir", counted_scandir),
        patch("os.listdir", counted_listdir),
        patch("pupujepa.durable.sync", lambda path: None),
    ):
        yield counts


def _row(number: int, kept: int, seconds: Sequence[float], listed: int, folder: Path) -> str:
    median_ms, most_ms = 1e3 * statistics.median(seconds), 1e3 * np.quantile(seconds, 0.9)
    files = sum(len(names) for _, _, names in os.walk(folder))
    return f"| {number:,} | {kept:,} | {median_ms:.2f} ({most_ms:.2f}) | {listed / len(seconds):.1f} | {files:,} |"
