"""Audio files decoded and resampled by threads before the encoder asks for them.

Threads, not processes: libsndfile and torch's resampling let go of the interpreter's lock, so threads run beside each
other and beside the encoder, and hand over their blocks without copying or pickling them. What is ahead is bounded per
file, so memory grows with the number of threads and not with the length of the audio. Each file is decoded by the same
pure function whatever the number of threads, so the result does not depend on it.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Full, Queue

import numpy as np
from numpy.typing import NDArray

from pupujepa.audio.clip import Clip, clip_of_file

_BLOCK_S = 30
_BLOCKS_AHEAD = 4
_GIVE_UP_CHECK_S = 0.05


class PendingClip:
    """A file that a thread decodes, at most four blocks of 30 s ahead of its reader."""

    def __init__(self, path: Path, to_hz: int) -> None:
        self.path = path
        self._to_hz = to_hz
        # the length in samples, then the blocks, then None
        self._queue: Queue[int | NDArray[np.float32] | None] = Queue(_BLOCKS_AHEAD + 1)
        self._abandoned = threading.Event()
        self._work: Future[None] | None = None

    def start(self, threads: ThreadPoolExecutor) -> None:
        """Begins to decode as soon as a thread is free."""
        self._work = threads.submit(self._decode)

    def open(self) -> Clip:
        """Waits for the first block and returns the clip; call it once.

        Raises:
            AudioError: here or while the clip is read: what decoding the file raised in its thread.
        """
        samples = self._queue.get()
        if not isinstance(samples, int):
            self._raise_error()
        assert isinstance(samples, int), "a decoder that ended before its length has raised"
        return Clip(self._blocks(), samples, origin=str(self.path))

    def abandon(self) -> None:
        """Lets the thread go, whatever it has still to decode."""
        self._abandoned.set()

    def _blocks(self) -> Iterator[NDArray[np.float32]]:
        while (block := self._queue.get()) is not None:
            assert not isinstance(block, int)
            yield block
        self._raise_error()

    def _raise_error(self) -> None:
        assert self._work is not None, "start() comes first"
        self._work.result()

    def _decode(self) -> None:
        try:
            clip = clip_of_file(self.path, self._to_hz)
            going = self._put(clip.samples)
            size = _BLOCK_S * self._to_hz
            for start in range(0, clip.samples, size):
                if not going:
                    break
                going = self._put(clip.read(start, min(start + size, clip.samples)).numpy())
        finally:
            self._put(None)

    def _put(self, item: int | NDArray[np.float32] | None) -> bool:
        while not self._abandoned.is_set():
            try:
                self._queue.put(item, timeout=_GIVE_UP_CHECK_S)
                return True
            except Full:
                continue
        return False


def decode_ahead(paths: Sequence[Path], to_hz: int, *, threads: int) -> Generator[PendingClip]:
    """Yields the files in order; asking for the next one abandons the one before.

    Args:
        to_hz: sample rate of the clips.
        threads: files that are decoded at the same time. The result does not depend on it.
    """
    ahead: deque[PendingClip] = deque()
    rest = (PendingClip(path, to_hz) for path in paths)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as executor:
        try:
            while True:
                # threads are handed out in this order, so the file that is read next always has one
                while len(ahead) < threads and (clip := next(rest, None)) is not None:
                    clip.start(executor)
                    ahead.append(clip)
                if not ahead:
                    return
                yield ahead[0]
                ahead.popleft().abandon()
        finally:
            for clip in ahead:
                clip.abandon()
            executor.shutdown(wait=True, cancel_futures=True)
