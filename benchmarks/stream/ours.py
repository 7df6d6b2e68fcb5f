"""Our side of the streaming benchmark: `data.stream.stream` without masks, since no peer draws any."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

from torch import Tensor

from benchmarks.stream.contender import Reading
from benchmarks.stream.corpus import CROP_FRAMES, SEED, Facts
from data.shards.manifest import read_manifest
from data.stream.config import StreamConfig
from data.stream.stream import Stream, StreamState
from data.stream.workers import start_server
from distributed.processes.process import keep_freed_memory

SHUFFLE = "every batch from 4 lanes, each shuffled over windows of 2 shards; exact and the same for any worker count"
LANES, WINDOW_SHARDS = 4, 2


class OurReader:
    """See `benchmarks.stream.contender.Reader`."""

    def __init__(self, reading: Reading, facts: Facts):
        self.reading, self.facts = reading, facts
        self._state: StreamState | None = None
        self._stream: Stream | None = None

    def batches(self) -> Iterator[tuple[list[str], Tensor]]:
        """Opens the stream, from its manifest on."""
        reading = self.reading
        config = StreamConfig(
            url=reading.url,
            seed=SEED,
            crop_frames=CROP_FRAMES,
            global_batch=reading.batch,
            lanes=LANES,
            window_shards=WINDOW_SHARDS,
            workers=reading.workers,
            cache_dir=reading.cache_dir,
        )
        steps = self.facts.config.samples // reading.batch * reading.epochs
        self._stream = Stream(
            config,
            manifest=read_manifest(reading.url),
            rank=0,
            world_size=1,
            micro_batch=reading.batch,
            total_steps=steps,
        )
        keep_freed_memory(os.environ)  # as a training on a CPU does
        if self._state is not None:
            self._stream.seek(self._state)
        for batch in self._stream:
            yield batch.uids, batch.mel()

    def state(self, batches: int) -> Any:
        """Returns the stream's state, which includes its step."""
        assert self._stream is not None
        state = self._stream.state()
        assert state.step == batches
        return asdict(state)

    def restore(self, state: Any) -> None:
        """Seeks when the stream is opened."""
        self._state = StreamState(**state)


def open_reader(reading: Reading, facts: Facts) -> OurReader:
    """Returns the reader once its workers' server has imported the modules that peers' workers inherit."""
    if reading.workers:
        start_server()
        first = get_context("forkserver").Process(target=os.getpid)
        first.start()
        first.join()
    return OurReader(reading, facts)
