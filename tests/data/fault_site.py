"""Where faults are met: a server with a shard set, the environment that leads to it, a stream that reads it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from data.shards.manifest import Manifest
from data.store.files import RetryPolicy
from data.stream.config import StreamConfig
from data.stream.stream import Stream
from examples.local_s3 import LocalS3
from pupujepa.errors import UserError

SAMPLES_PER_SHARD = (7, 5, 6, 4, 9, 3)
STEPS = 8  # two epochs of four

Row = tuple[str, int, int, bytes]


@dataclass(frozen=True)
class Site:
    """A real server, a place on it with a shard set, and a folder for caches and files.

    Args:
        retries: of the streams.
        deadline_s, silence_s: instead of the policy's deadline and read timeout, where a case waits for them.
    """

    server: LocalS3
    url: str
    manifest: Manifest
    folder: Path
    retries: RetryPolicy
    deadline_s: float
    silence_s: float

    @property
    def insistent(self) -> RetryPolicy:
        """The policy of cases that the deadline ends."""
        return replace(self.retries, deadline_s=self.deadline_s)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a stream: its rows, or its error, and its counts.

    Args:
        expected: rows of a healthy stream over the same set; None where that is the site's.
    """

    rows: list[Row]
    error: str
    counters: dict[str, float]
    seconds: float
    expected: list[Row] | None = None


def read_stream(
    url: str, manifest: Manifest, cache: Path, *, retries: RetryPolicy, at_step: Callable[[int], None] | None = None
) -> Outcome:
    """Reads a whole stream from an empty cache, in this process; a UserError is an outcome."""
    config = StreamConfig(
        url=url,
        seed=3,
        crop_frames=32,
        global_batch=8,
        lanes=4,
        window_shards=1,
        workers=0,
        cache_dir=str(cache),
        cache_bytes=10**9,
        prefetch_bytes=0,
        max_bad_fraction=0.2,
        retries=retries,
    )
    stream = Stream(config, manifest=manifest, rank=0, world_size=1, micro_batch=8, total_steps=STEPS)
    rows: list[Row] = []
    error, started = "", time.monotonic()
    try:
        for batch in stream:
            values = (mel.numpy().tobytes() for mel in batch.mel())
            rows += zip(batch.uids, batch.draws.tolist(), batch.crop_starts.tolist(), values, strict=True)
            if at_step is not None:
                at_step(batch.step)
    except UserError as raised:
        error = str(raised)
    return Outcome(rows, error, stream.counters(), time.monotonic() - started)


def fresh_cache(site: Site) -> Path:
    """A folder that no stream has used."""
    number = len([*site.folder.glob("cache-*")])
    return site.folder / f"cache-{number}"


@contextmanager
def environment(**changes: str | None) -> Iterator[None]:
    """Sets and removes variables of this process within the block."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def through(endpoint_url: str) -> AbstractContextManager[None]:
    """Points clients to an endpoint within the block."""
    return environment(AWS_ENDPOINT_URL=endpoint_url, AWS_ENDPOINT_URL_S3=endpoint_url)
