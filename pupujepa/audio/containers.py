"""Containers of audio, shown to libsndfile so that it reads all of the music.

libsndfile stops at the announced length, and of a chained ogg it reads the first stream only. So it gets views of the
bytes: each stream of a chain by itself, and headers whose length is unknown. The file itself is never changed.

Sources: RFC 3533 (ogg pages), RFC 9639 (flac STREAMINFO), and the Xing header as libmpg123 reads it.
"""

import ctypes
import io
import os
import platform
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

_HEAD_BYTES = 1 << 16
_TAIL_BYTES = 128  # where libmpg123 looks for a tag
# libmpg123 guesses the length of an mp3 without a Xing header from its bytes: for so many, the guess is never too short
_ENDLESS_BYTES = 1 << 40
_ENDLESS_FRAMES = b"\xff\xff\xff\xfe"
_SYNC = re.compile(rb"\xff[\xe0-\xff]")
# by MPEG version as a frame's header codes it; layer III
_KBPS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_KBPS[0] = _KBPS[2]
_MOST_FRAMES = 8  # to look at
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
# distance of the Xing header from its frame: stereo and mono of MPEG-1, then of MPEG-2
_XING_PLACES = (36, 21, 13)
_FLAC_START = b"fLaC\0\0\0\x22"
_PAGE = b"OggS"
_FIRST_PAGE = 2  # flag of the first page of a stream
_OGG_CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")


class ByteView:
    """Bytes from `start` to `stop` of a file, some of them replaced.

    Args:
        patches: new bytes by position in the view.
        claimed: length to announce instead of the true one.
        announced: samples that a flac header announces; 0 if it does not say.
    """

    def __init__(
        self,
        file: BinaryIO,
        start: int,
        stop: int,
        *,
        patches: Mapping[int, bytes],
        claimed: int = 0,
        announced: int = 0,
    ) -> None:
        self.start, self.length, self.announced = start, max(stop - start, 0), announced
        self.position = 0
        self._error: OSError | None = None
        self._file, self._patches, self._claimed = file, patches, max(claimed, self.length)

    @property
    def is_spent(self) -> bool:
        """True once the reader is past the last byte."""
        return self.position >= self.length

    def raise_error(self) -> None:
        """Raises the OSError of a failed read, which libsndfile takes for the end of the file."""
        if self._error is not None:
            raise self._error

    def tell(self) -> int:
        """Returns the position."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self._claimed}[whence]
        self.position = max(base + offset, 0)
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer as far as there are bytes."""
        into, at = memoryview(buffer).cast("B"), self.position
        if at < self.length:
            got = self._read(into[: self.length - at])
        else:
            # of a claimed length only the tail can be read: zeros, which are no tag
            got = min(len(into), max(self._claimed - at, 0)) if at >= self._claimed - _TAIL_BYTES else 0
            into[:got] = bytes(got)
        self.position += got
        return got

    def _read(self, into: memoryview) -> int:
        at = self.position
        try:
            piece = _bytes_at(self._file, self.start + at, len(into))
        except OSError as error:
            self._error = error
            return 0
        into[: len(piece)] = piece
        for place, new in self._patches.items():
            first, last = max(place, at), min(place + len(new), at + len(piece))
            if first < last:
                into[first - at : last - at] = new[first - place : last - place]
        return len(piece)


def streams(file: BinaryIO) -> Iterator[ByteView]:
    """Yields the streams of a file: of a chained ogg, of joined flac files, or the whole file.

    The length of a flac is made unknown, and its successor is searched when it has been read.
    """
    size = file.seek(0, io.SEEK_END)
    if _bytes_at(file, 0, len(_PAGE)) == _PAGE:
        starts = [0, *_chained(file)]
        for first, stop in zip(starts, [*starts[1:], size], strict=True):
            yield ByteView(file, first, stop, patches={})
        return
    start: int | None = 0
    while start is not None:
        at = _behind_tags(file, start) - start
        header = _bytes_at(file, start + at, 26)
        if not header.startswith(_FLAC_START):
            yield ByteView(file, start, size, patches={})
            return
        announced = int.from_bytes(header[21:26], "big") & (1 << 36) - 1
        unknown = bytes([header[21] & 0xF0, 0, 0, 0, 0])
        view = ByteView(file, start, size, patches={at + 21: unknown}, announced=announced)
        yield view
        # the decoder is a little past the end of what it decoded
        start = _find(file, _FLAC_START, start + max(at + 26, view.position - _HEAD_BYTES))


def mpeg_stream(file: BinaryIO, start: int) -> tuple[ByteView, int]:
    """Returns an mp3 as an endless stream from `start` on, and the frames of its Xing header or 0."""
    size, first = file.seek(0, io.SEEK_END), _behind_tags(file, start)
    head = _bytes_at(file, first, _HEAD_BYTES)
    for found in re.finditer(b"Xing|Info", head):
        at = found.start()
        counts_frames = head[at + 7 : at + 8] and head[at + 7] & 1
        if counts_frames and any(_SYNC.match(head, at - place) for place in _XING_PLACES if place <= at):
            patches = {first - start + at + 8: _ENDLESS_FRAMES}
            return ByteView(file, start, size, patches=patches), int.from_bytes(head[at + 8 : at + 12], "big")
    return ByteView(file, start, size, patches={}, claimed=_ENDLESS_BYTES), 0


def next_mpeg_frame(file: BinaryIO, at: int, *, like: int | None = None, followers: int = 1) -> int | None:
    """Returns the position of the next layer III frame that others of its kind follow, or None.

    Args:
        like: position of a frame whose rate and channels it must have.
        followers: number of frames that must follow.
    """
    kind = None if like is None else _frame(file, like)[1]
    while piece := _bytes_at(file, at, _HEAD_BYTES):
        for found in _SYNC.finditer(piece):
            place = at + found.start()
            if _frames_of_kind(file, place, kind) > followers:
                return place
        at += max(len(piece) - 1, 1)  # a pattern may lie across two pieces
    return None


@contextmanager
def silent_libmpg123() -> Iterator[None]:
    """Discards notes of libmpg123 on `stderr`, which name no file and which no flag turns off.

    Python's own standard error is not affected. Only glibc's `stderr` can be replaced.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    stderr = _CStandardError.get()
    stderr.mute(1)
    try:
        yield
    finally:
        stderr.mute(-1)


class _CStandardError:
    """The `stderr` of C, replaced while any thread has muted it."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        library.fopen.restype = ctypes.c_void_p
        self._stream = ctypes.c_void_p.in_dll(library, "stderr")
        self._true, self._null = self._stream.value, library.fopen(os.devnull.encode(), b"w")
        self._lock, self._muted = threading.Lock(), 0

    @classmethod
    @cache
    def get(cls) -> "_CStandardError":
        """Returns the one of this process."""
        return cls()

    def mute(self, change: int) -> None:
        """Counts the threads that have muted it."""
        with self._lock:
            self._muted += change
            self._stream.value = self._null if self._muted else self._true


def _frame(file: BinaryIO, at: int) -> tuple[int, tuple[int, ...]]:
    """Returns the bytes of the layer III frame at a position, or 0, and its version, rate and channels."""
    header = _bytes_at(file, at, 4)
    if len(header) < 4 or not _SYNC.match(header) or header[1] & 6 != 2:
        return 0, ()
    version, bitrate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return 0, ()
    rate_hz, is_mono = _RATES_HZ[version][rate], header[3] >> 6 == 3
    length = (144_000 if version == 3 else 72_000) * _KBPS[version][bitrate] // rate_hz + (header[2] >> 1 & 1)
    return length, (version, rate_hz, is_mono)


def _frames_of_kind(file: BinaryIO, at: int, kind: tuple[int, ...] | None) -> int:
    """Returns the number of consecutive frames of one kind, the given one or any."""
    for count in range(_MOST_FRAMES):
        length, own = _frame(file, at)
        if not length or kind not in (None, own):
            return count
        at, kind = at + length, own
    return _MOST_FRAMES


def _behind_tags(file: BinaryIO, at: int) -> int:
    """Returns the position behind the ID3v2 tags at `at`."""
    while (header := _bytes_at(file, at, 10)).startswith(b"ID3") and len(header) == 10:
        # four bytes of seven bits
        at += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(header[6:], (21, 14, 7, 0), strict=True))
    return at


def _chained(file: BinaryIO) -> Iterator[int]:
    """Yields the positions of the later streams of an ogg file; parallel streams are one."""
    at: int | None = 0
    was_first = True
    while at is not None:
        header = _bytes_at(file, at, 27 + 255)
        if len(header) < 27 or not header.startswith(_PAGE):
            at = _find(file, _PAGE, at + 1)  # a damaged page
            continue
        is_first, body = bool(header[5] & _FIRST_PAGE), 27 + header[26]
        if is_first and not was_first and _bytes_at(file, at + body, 8).startswith(_OGG_CODECS):
            yield at
        was_first = is_first
        at += body + sum(header[27:body])


def _find(file: BinaryIO, pattern: bytes, at: int) -> int | None:
    while piece := _bytes_at(file, at, _HEAD_BYTES):
        if (found := piece.find(pattern)) >= 0:
            return at + found
        if len(piece) < len(pattern):
            return None
        at += len(piece) - len(pattern) + 1
    return None


def _bytes_at(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)
