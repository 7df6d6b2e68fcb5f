"""Decoding ahead: threads decode and resample audio files before the encoder needs them.

Threads suffice, because libsndfile and torch's resampling release the interpreter's lock, and blocks need no copy. A
thread holds at most five minutes and its queue, so memory grows with the number of threads and not with the length of
the audio. Each file is decoded by the same pure function, so the result does not depend on the number of threads.
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
    """A file that a thread decodes at most four blocks of 30 s ahead of its reader."""

    def __init__(self, path: Path, to_hz: int) -> None:
        self.path = path
        self._to_hz = to_hz
        # the length in samples with its note, then the blocks, then None
        self._queue: Queue[tuple[int, str] | NDArray[np.float32] | None] = Queue(_BLOCKS_AHEAD + 1)
        self._abandoned = threading.Event()
        self._work: Future[None] | None = None

    def start(self, threads: ThreadPoolExecutor) -> None:
        """Queues the decoding, which begins when a thread is free."""
        self._work = threads.submit(self._decode)

    def open(self) -> Clip:
        """Returns the clip as soon as its length is known; call it once.

        Raises:
            AudioError, UnreadableError: here or while reading the clip: the error of the decoding thread.
        """
        facts = self._queue.get()
        if not isinstance(facts, tuple):
            self._raise_error()
        assert isinstance(facts, tuple), "a decoder without a length has raised"
        samples, note = facts
        return Clip(self._blocks(), samples, origin=str(self.path), note=note)

    def abandon(self) -> None:
        """Ends the decoding early, so that the thread is free."""
        self._abandoned.set()

    def _blocks(self) -> Iterator[NDArray[np.float32]]:
        while (block := self._queue.get()) is not None:
            assert not isinstance(block, tuple)
            yield block
        self._raise_error()

    def _raise_error(self) -> None:
        assert self._work is not None, "start() comes first"
        self._work.result()

    def _decode(self) -> None:
        try:
            clip = clip_of_file(self.path, self._to_hz)
            going = self._put((clip.samples, clip.note))
            size = _BLOCK_S * self._to_hz
            for start in range(0, clip.samples, size):
                if not going:
                    break
                going = self._put(clip.read(start, min(start + size, clip.samples)).numpy())
        finally:
            self._put(None)  # after an error too: the reader must not wait for ever

    def _put(self, item: tuple[int, str] | NDArray[np.float32] | None) -> bool:
        while not self._abandoned.is_set():  # a plain put could block for ever after the reader left
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
        threads: files to decode at the same time.
    """
    ahead: deque[PendingClip] = deque()
    rest = (PendingClip(path, to_hz) for path in paths)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as executor:
        try:
            while True:
                # threads start in this order, so the file to read next always has one
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
