"""Open audio files: blocks of the samples that are really there, whatever a header announces.

Every reader of audio uses `open_audio`. An `AudioError` says that a file is damaged or is no audio, an
`UnreadableError` that it cannot be read now. A file that is longer or shorter than announced gets a note.

Shapes: S samples, C channels.
"""

import io
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from pupujepa.audio.containers import ByteView, mpeg_stream, next_mpeg_frame, silent_libmpg123, streams
from pupujepa.audio.read import AudioError, mono, no_audio, plausible_rate_hz
from pupujepa.errors import UnreadableError

BLOCK_S = 30
# of all channels; a header may announce a thousand of them, or a rate of 768 kHz
_BLOCK_VALUES = 1 << 22
_UNKNOWN_SAMPLES = 1 << 62  # libsndfile says 2^63 - 1
_UNKNOWN_BYTES = 0x7FFF0000  # recorders that write to a pipe announce about this, or more
_NOTE_S = 0.1
# libmpg123's guess from the size of a file and its first frame
_GUESS_TOLERANCE = 0.01
_MPEG_SUFFIXES = (".mp3", ".mpga")
_MOST_PADDING = 2 * 4095  # the header has twelve bits each for delay and padding
_FRAMES_OF_MUSIC = 4  # so many in a row are no coincidence
_NEW_FORMAT = 3  # libsndfile's error code when the rate or the channels of an mp3 change
# in the log of libsndfile: a chunk's announced length, and the one that fits into the file
_CUT_CHUNK = re.compile(r": (\d+) \(should be (\d+)\)")


class _ForwardFile(soundfile.SoundFile):
    """soundfile seeks after each read of a seekable file, and believes its length."""

    def seekable(self) -> bool:
        return False


class AudioSource:
    """Opened audio, read forward.

    Attributes:
        rate_hz, channels: of the file.
        origin: name in messages.
        announced: samples that the file announces; 0 if it does not say.

    Raises:
        AudioError: no audio, or an implausible sample rate.
        UnreadableError: the file cannot be read now.
    """

    def __init__(self, file: BinaryIO, *, origin: str, suffix: str = "") -> None:
        self.origin = origin
        self.announced = 0
        self._file, self._suffix = file, suffix
        self._padding = 0  # samples that an mp3 encoder may have added after the announced ones
        self._tolerance = 0.0
        self._start()
        self.rate_hz = plausible_rate_hz(self._sound.samplerate, origin=origin)
        self.channels: int = self._sound.channels

    def blocks(self, first: int = 0, samples: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Yields consecutive stretches [S, C], float32, of the samples that are there, from `first` on.

        Args:
            samples: the most to yield; None reads to the end.

        Raises:
            AudioError: damage, found only while reading. UnreadableError: the disk fails.
        """
        self._skip_to(first)
        size = max(min(BLOCK_S * self.rate_hz, _BLOCK_VALUES // self.channels), 1)
        while samples is None or samples > 0:
            block_SC = self._next(size if samples is None else min(size, samples))
            if not len(block_SC):
                return
            samples = None if samples is None else samples - len(block_SC)
            yield block_SC

    @property
    def note(self) -> str:
        """A sentence if the audio was read to its end, and has another length than announced; else ""."""
        difference = abs(self._position - self.announced)
        allowed = _NOTE_S * self.rate_hz + self._tolerance * self._position
        if not self._has_ended or not self.announced or difference <= allowed:
            return ""
        announced_s, held_s = self.announced / self.rate_hz, self._position / self.rate_hz
        return f"{self.origin}: announces {announced_s:.2f} s but holds {held_s:.2f} s, which are used"

    def _start(self) -> None:
        """Opens the first stream."""
        self._position, self._has_ended = 0, False
        self._held = np.zeros((0, 1), np.float32)  # decoded, but not asked for yet
        self._streams = streams(self._file)
        with named_unreadable(self.origin):
            self._view = next(self._streams)
            self._first_frame = 0
        try:
            self._sound = self._open(self._view)
        except AudioError:
            # libsndfile knows an mp3 by its start, which may be junk or a part of a frame
            with named_unreadable(self.origin):
                start = next_mpeg_frame(self._file, 0) if self._suffix in _MPEG_SUFFIXES else None
            if start is None:
                raise
            self._first_frame = start
            self._sound = self._open(ByteView(self._file, start, self._view.length, patches={}))
        if self._sound.format == "MP3":
            self._open_mpeg()
        else:
            self.announced = self._view.announced or _announced(self._sound)

    def _open_mpeg(self) -> None:
        self.announced = self._sound.frames
        with named_unreadable(self.origin):
            self._view, frames = mpeg_stream(self._file, self._first_frame)
            self._first_frame = next_mpeg_frame(self._file, self._first_frame) or self._first_frame
        self._sound = self._open(self._view)
        samples_per_frame = 1152 if self._sound.samplerate >= 32_000 else 576
        self._padding = min(max(frames * samples_per_frame - self.announced, 0), _MOST_PADDING)
        self._tolerance = 0.0 if frames else _GUESS_TOLERANCE

    def _open(self, view: ByteView) -> _ForwardFile:
        try:
            with silent_libmpg123():
                return _ForwardFile(view)
        except soundfile.LibsndfileError as error:
            self._raise_error(view)
            why = "it is empty" if not view.length else error.error_string.rstrip(".")
            if "not exist" in why:  # libsndfile says so of an mp3 without a whole frame
                why = "it holds no audio that can be decoded"
            raise AudioError(
                f"{self.origin}: cannot be decoded as audio ({why}); convert it to wav, flac, ogg or mp3"
            ) from error

    def _raise_error(self, view: ByteView) -> None:
        with named_unreadable(self.origin):
            view.raise_error()

    def _skip_to(self, first: int) -> None:
        # an mp3 also to sample 0: libmpg123 rounds otherwise after a seek, and corpora keep their bytes
        is_sought = first < self.announced and (first or self._sound.format == "MP3")
        if is_sought and not self._seek(first):
            self._start()
        while self._position < first:
            if not len(self._next(min(first - self._position, _BLOCK_VALUES // self.channels + 1))):
                return

    def _seek(self, first: int) -> bool:
        """Returns True if libsndfile found the sample; after a failure the file must be opened again."""
        try:
            with silent_libmpg123():
                self._position = self._sound.seek(first)
        except soundfile.LibsndfileError:
            return False
        return self._position == first

    def _next(self, samples: int) -> NDArray[np.float32]:
        """Returns up to `samples` samples, none only at the end."""
        while not self._has_ended:
            block_SC = self._held if len(self._held) else self._decode(samples)
            if len(block_SC):
                self._held = block_SC[samples:]
                self._position += len(block_SC[:samples])
                return block_SC[:samples]
            self._has_ended = not self._open_next_stream()
        return np.zeros((0, self.channels), np.float32)

    def _decode(self, samples: int) -> NDArray[np.float32]:
        left = self.announced - self._position
        if left > 0:
            return self._read(min(samples, left))
        if left < 0 or not self._padding:
            return self._read(samples)
        # at the announced end of an mp3: only more than the padding is music
        block_SC = self._read(self._padding + 1)
        return block_SC if len(block_SC) > self._padding else block_SC[:0]

    def _read(self, samples: int) -> NDArray[np.float32]:
        """Returns what libsndfile decodes, which after an error is what it had written so far."""
        block_SC = np.full((samples, self._sound.channels), np.nan, np.float32)
        try:
            with silent_libmpg123():
                read_SC = self._sound.read(out=block_SC)
        except soundfile.LibsndfileError as error:
            self._raise_error(self._view)
            unwritten_S = np.append(np.isnan(block_SC).all(1), True)
            read_SC = block_SC[: int(unwritten_S.argmax())]
            self._judge(error, len(read_SC))
        self._raise_error(self._view)
        return read_SC

    def _judge(self, error: soundfile.LibsndfileError, got: int) -> None:
        """Raises AudioError unless the audio only ended: at its last byte, a tag, or junk of an mp3."""
        at = self._position + got
        is_end = self._view.is_spent or 0 < self.announced <= at
        if self._sound.format == "MP3":
            is_end = error.code != _NEW_FORMAT
        if not is_end:
            why = "its format changes" if error.code == _NEW_FORMAT else error.error_string.rstrip(".")
            raise AudioError(
                f"{self.origin}: cannot be decoded beyond {at / self.rate_hz:.2f} s ({why}); repair or remove it"
            ) from error

    def _open_next_stream(self) -> bool:
        with named_unreadable(self.origin):
            view = self._next_mpeg_stream() if self._sound.format == "MP3" else next(self._streams, None)
        if view is None:
            return False
        sound = self._open(view)
        if (sound.samplerate, sound.channels) != (self.rate_hz, self.channels):
            raise self._several_rates()
        if sound.format == "OGG":
            self.announced = 0  # a chained ogg announces no total
        self._view, self._sound = view, sound
        return True

    def _next_mpeg_stream(self) -> ByteView | None:
        """Returns the rest of an mp3 after junk. Raises AudioError if it has another rate."""
        at = self._view.start + max(self._view.position, 1)
        start = next_mpeg_frame(self._file, at, like=self._first_frame)
        if start is not None:
            return mpeg_stream(self._file, start)[0]
        if next_mpeg_frame(self._file, at, followers=_FRAMES_OF_MUSIC) is not None:
            raise self._several_rates()
        return None

    def _several_rates(self) -> AudioError:
        return AudioError(
            f"{self.origin}: its streams have several rates or channels, so only a part could be read; convert it to "
            "one stream"
        )


@contextmanager
def open_audio(audio: Path | BinaryIO, *, origin: str | None = None) -> Iterator[AudioSource]:
    """Opens an audio file, or a seekable binary file object.

    Args:
        origin: name in messages; default: the path.

    Raises:
        AudioError: no such file, no audio, or an implausible sample rate.
        UnreadableError: it cannot be read now.
    """
    if not isinstance(audio, Path):
        origin = origin or str(getattr(audio, "name", "audio"))
        if isinstance(audio, io.TextIOBase) or not audio.seekable():
            raise AudioError(f"{origin}: must be an open binary file that can seek; give a path, or an io.BytesIO")
        yield AudioSource(audio, origin=origin)
        return
    origin = origin or str(audio)
    with named_unreadable(origin):
        mode = audio.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{origin}: is a folder and not an audio file; name a file in it")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
            raise AudioError(f"{origin}: is a pipe or a device and not an audio file; give a file")
        file = audio.open("rb")
    with file:
        yield AudioSource(file, origin=origin, suffix=audio.suffix.lower())


def read_audio(
    path: str | Path, *, start_s: float = 0.0, duration_s: float | None = None
) -> tuple[NDArray[np.float32], int]:
    """Decodes a stretch of an audio file.

    Args:
        duration_s: None reads to the end; a file that ends sooner gives less.

    Returns:
        Mono audio [S] (mean over the channels) and its sample rate in Hz.

    Raises:
        AudioError: missing, damaged or empty file, a stretch beyond its end, or samples that are not finite.
        UnreadableError: the file cannot be read now.
    """
    with open_audio(Path(path)) as source:
        samples = None if duration_s is None else round(duration_s * source.rate_hz)
        blocks = list(source.blocks(round(start_s * source.rate_hz), samples))
        if not blocks:
            raise no_audio(source.origin, start_s)
        return mono(np.concatenate(blocks).T, origin=source.origin), source.rate_hz


@dataclass(frozen=True)
class AudioFacts:
    """Sample rate, channels and true length of a file."""

    rate_hz: int
    channels: int
    samples: int


def measure_audio(path: Path) -> AudioFacts:
    """Returns the facts of a file without decoding it all, if it ends where it announces.

    Raises:
        AudioError: as `open_audio` and `AudioSource.blocks` say.
        UnreadableError: the file cannot be read now.
    """
    with open_audio(path) as source:
        announced, rate_hz, channels = source.announced, source.rate_hz, source.channels
        if announced and sum(map(len, source.blocks(announced - 1, 2))) == 1:
            return AudioFacts(rate_hz, channels, announced)
    with open_audio(path) as source:
        samples = sum(map(len, source.blocks()))
    if not samples:
        raise no_audio(source.origin)
    return AudioFacts(rate_hz, channels, samples)


@contextmanager
def named_unreadable(origin: str) -> Iterator[None]:
    """Names the file in an error of the system.

    Raises:
        AudioError: there is no such file.
        UnreadableError: any other error of the system.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AudioError(f"{origin}: no such audio file; check the path") from error
    except OSError as error:
        raise UnreadableError(error.errno, error.strerror or str(error), origin) from error


def _announced(sound: soundfile.SoundFile) -> int:
    """Returns the samples that a header announces, also if the file was cut, or 0 if it does not say."""
    cut = _CUT_CHUNK.findall(sound.extra_info)
    if sound.frames >= _UNKNOWN_SAMPLES or not cut:
        return sound.frames if sound.frames < _UNKNOWN_SAMPLES else 0
    announced_bytes, fitting_bytes = map(int, cut[-1])
    whole = round(sound.frames * announced_bytes / max(fitting_bytes, 1))
    return 0 if announced_bytes >= _UNKNOWN_BYTES else max(sound.frames, whole)
