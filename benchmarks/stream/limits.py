"""Raw limits beside the contenders: the same tars read from disk with one copy, or by plain GETs.

Nothing is decoded or checked. From a store, each way in `WAYS` is tried once, and the fastest one counts.
"""

import http.client
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.stream.contender import Reading
from benchmarks.stream.corpus import Facts
from data.store.store import open_store

SHUFFLE = "none: one file after the other"
_BLOCK_BYTES = 8 << 20
# client and parallel connections
WAYS = ("http 1", "http 2", "http 4", "http 8", "botocore 2", "botocore 4", "s3fs 1")


class RawReader:
    """Yields ([], bytes read) for every tar; see `benchmarks.stream.contender.Reader`."""

    def __init__(self, reading: Reading):
        self.reading = reading

    def batches(self) -> Iterator[tuple[list[str], Any]]:
        """Reads all tars, `epochs` times."""
        store = open_store(self.reading.url)
        names = [name for name in store.list() if name.endswith(".tar")] * self.reading.epochs
        folder = store.local_path()
        if folder is not None:
            yield from (([], read_and_copy(folder / name)) for name in names)
            return
        client, connections = self.reading.way.split()
        get = {"http": _http_get, "botocore": _botocore_get, "s3fs": _s3fs_get}[client](self.reading.url)
        with ThreadPoolExecutor(int(connections)) as threads:
            yield from (([], size) for size in threads.map(get, names))

    def state(self, batches: int) -> Any:
        """A limit has no state."""
        raise NotImplementedError

    def restore(self, state: Any) -> None:
        """A limit has no state."""
        raise NotImplementedError


def open_reader(reading: Reading, facts: Facts) -> RawReader:
    """Returns the reader."""
    return RawReader(reading)


def read_and_copy(path: Path) -> int:
    """Reads a file in blocks, copies each once more in memory, and returns the bytes."""
    block, copy, total = bytearray(_BLOCK_BYTES), bytearray(_BLOCK_BYTES), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            memoryview(copy)[:count] = memoryview(block)[:count]
            total += count
    return total


def _http_get(url: str) -> Any:
    """Returns a function that gets an object by plain HTTP at a signed address, into one block of memory."""
    parts, client = urlsplit(url), _client()

    def get(name: str) -> int:
        where = {"Bucket": parts.netloc, "Key": f"{parts.path.strip('/')}/{name}"}
        signed = urlsplit(client.generate_presigned_url("get_object", Params=where))
        made = http.client.HTTPSConnection if signed.scheme == "https" else http.client.HTTPConnection
        connection = made(signed.netloc)
        connection.request("GET", f"{signed.path}?{signed.query}")
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"GET {name}: status {response.status}")
        block, total = bytearray(_BLOCK_BYTES), 0
        while count := response.readinto(block):
            total += count
        connection.close()
        return total

    return get


def _botocore_get(url: str) -> Any:
    parts, client = urlsplit(url), _client()

    def get(name: str) -> int:
        body = client.get_object(Bucket=parts.netloc, Key=f"{parts.path.strip('/')}/{name}")["Body"]
        return sum(len(block) for block in body.iter_chunks(_BLOCK_BYTES))

    return get


def _s3fs_get(url: str) -> Any:
    store = open_store(url)
    return lambda name: len(store.read(name))


def _client() -> Any:
    from botocore.config import Config
    from botocore.session import Session

    region = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
    return Session().create_client("s3", region_name=region, config=Config(max_pool_connections=16))
