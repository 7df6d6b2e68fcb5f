"""Streamed bodies of S3 responses; a body that is too slow or too short raises."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from data.store.s3_errors import ShortBodyError, SlowBodyError

# about one socket read; the 64 KiB pieces of s3fs cost a third more CPU time
_PIECE_BYTES = 1 << 18


class BodyProgress:
    """Progress of a body; raises if a window of `window_s` brings fewer than `min_bytes_per_s`."""

    def __init__(self, clock: Callable[[], float], window_s: float, min_bytes_per_s: float):
        self.size: int | None = None
        self._clock, self._window_s, self._min_bytes_per_s = clock, window_s, min_bytes_per_s
        self._window_began, self._bytes_of_window = clock(), 0

    def set_size(self, size: int | None) -> None:
        """Records the announced length; the body begins."""
        self.size = size
        self._window_began, self._bytes_of_window = self._clock(), 0

    def relative_update(self, increment: int = 1) -> None:
        """Records received bytes. Raises SlowBodyError if the window was too slow."""
        self._bytes_of_window += increment
        elapsed_s = self._clock() - self._window_began
        if elapsed_s < self._window_s:
            return
        if self._bytes_of_window < self._min_bytes_per_s * elapsed_s:
            raise SlowBodyError(f"{self._bytes_of_window} bytes in {elapsed_s:.0f} s")
        self._window_began, self._bytes_of_window = self._clock(), 0


async def read_body(client: Any, bucket: str, key: str, progress: BodyProgress) -> bytes:
    """Returns a whole object, which the client compares with the store's checksum.

    Raises:
        ShortBodyError, SlowBodyError: besides the client's own errors.
    """
    async with aclosing(_pieces(client, bucket, key, progress)) as pieces:
        return b"".join([piece async for piece in pieces])


async def write_body(client: Any, bucket: str, key: str, progress: BodyProgress, target: Path) -> int:
    """Writes an object to a file and returns its length; checks and raises like `read_body`."""
    async with aclosing(_pieces(client, bucket, key, progress)) as pieces:
        with target.open("wb") as file:
            async for piece in pieces:
                file.write(piece)
            return file.tell()


async def _pieces(client: Any, bucket: str, key: str, progress: BodyProgress) -> AsyncGenerator[bytes, None]:
    answer = await client._call_s3("get_object", Bucket=bucket, Key=key)
    progress.set_size(answer.get("ContentLength"))
    length = 0
    async with answer["Body"] as body:
        while piece := await body.read(_PIECE_BYTES):
            length += len(piece)
            progress.relative_update(len(piece))
            yield piece
    if progress.size is not None and progress.size != length:
        raise ShortBodyError(f"{length} of {progress.size} bytes came")
