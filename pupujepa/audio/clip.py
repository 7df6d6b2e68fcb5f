"""Clips read forward in blocks: hours of audio decoded and resampled in the memory of seconds.

Each block is resampled with context on both sides, so their concatenation equals the resampled whole.

Shapes: B batch, S samples of audio, C channels, T frames, F mel bands.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pupujepa.audio.log_mel import FrontendConfig, frame_span, log_mel_of_span
from pupujepa.audio.read import (
    AudioError,
    as_channels,
    mix_down,
    no_audio,
    plausible_rate_hz,
    resample,
    resampling_ratio,
)
from pupujepa.audio.resampling import resampled_samples
from pupujepa.audio.source import BLOCK_S, AudioSource, open_audio

# the filter of resampling.py reaches 6 zero crossings of the lower rate; 16 leaves a wide margin
_CONTEXT_CROSSINGS = 16
# A convolution treats its last periods, and inputs below 20,480 samples, with other kernels, whose sums differ in the
# last bit. Blocks that begin at multiples of 64 periods, with much context before, give the bits of the whole.
_PERIODS_PER_CUT = 64
_CONTEXT_BEFORE_SAMPLES = 1 << 16
# five minutes at 24 kHz, 29 MB: longer audio is decoded twice, first to find its length
_HELD_SAMPLES = 7_200_000


class Clip:
    """Mono audio of known rate and length, read forward; audio before the last read is dropped.

    Args:
        blocks: consecutive stretches [S].
        samples: their total length.
        origin: name of the audio in messages.
        note: a sentence if the file announces another length, else "".
    """

    def __init__(self, blocks: Iterator[NDArray[np.float32]], samples: int, *, origin: str, note: str = "") -> None:
        self.samples = samples
        self.origin = origin
        self.note = note
        self._blocks = blocks
        self._held = torch.zeros(0)
        self._start = 0

    def read(self, start: int, stop: int) -> Tensor:
        """Returns samples [start, stop); silence beyond the end.

        Args:
            start: not before the start of an earlier read.

        Raises:
            AudioError: the blocks end before `samples`: the file was changed while it was read.
        """
        assert start >= self._start, "a clip is read forward only"
        parts = [self._held[start - self._start :]] if start - self._start < len(self._held) else []
        have = self._start + len(self._held)
        while have < min(stop, self.samples):
            block = next(self._blocks, None)
            if block is None:
                raise AudioError(
                    f"{self.origin}: ends after {have} samples although it had {self.samples}; leave it unchanged"
                )
            parts.append(torch.from_numpy(block)[max(start - have, 0) :])  # skipped audio is never held
            have += len(block)
        self._held = torch.cat(parts) if parts else torch.zeros(0)
        self._start = start
        found = self._held[: min(stop, self.samples) - start]
        return torch.nn.functional.pad(found, (0, stop - start - len(found)))


Audio = str | Path | BinaryIO | NDArray | Tensor | Mapping[str, Any] | tuple[Any, Any] | Clip


def clip_of(audio: Audio, rate_hz: float | None, *, to_hz: int) -> Clip:
    """Opens audio of any kind that `Encoder.encode` takes as a clip at `to_hz`.

    Args:
        rate_hz: of samples without a rate of their own.

    Raises:
        AudioError: a url, no rate or two different ones, or audio that cannot be used.
        UnreadableError: a file that cannot be read now.
    """
    if isinstance(audio, Clip):
        return audio
    if isinstance(audio, (Mapping, tuple)):
        audio, own_hz = _samples_and_rate(audio)
        if rate_hz not in (None, own_hz):
            raise AudioError(f"the audio comes with {own_hz:g} Hz, not {rate_hz:g} Hz as given; leave the rate out")
        rate_hz = own_hz
    if isinstance(audio, str):
        if "://" in audio:
            raise AudioError(f"{audio} is a url, and audio is read from local files only; download it first")
        audio = Path(audio)
    if isinstance(audio, Path) or hasattr(audio, "read"):
        return clip_of_file(cast("Path | BinaryIO", audio), to_hz, declared_hz=rate_hz)
    if rate_hz is None:
        raise AudioError("sample_rate_hz is missing; give it with audio samples")
    return clip_of_samples(_as_array(audio), rate_hz, to_hz)


def _samples_and_rate(audio: Mapping[str, Any] | tuple[Any, Any]) -> tuple[Any, float]:
    if isinstance(audio, Mapping):
        if not {"array", "sampling_rate"} <= audio.keys():
            raise AudioError(f"a dict of audio needs array and sampling_rate, and has {', '.join(map(str, audio))}")
        return audio["array"], audio["sampling_rate"]
    if len(audio) == 2 and isinstance(audio[0], Real):  # some libraries give the rate first
        audio = audio[::-1]
    if len(audio) != 2 or not isinstance(audio[1], Real):
        raise AudioError("a tuple of audio must be a pair (samples, rate); stack channels to an array instead")
    return audio


def _as_array(audio: Any) -> NDArray:
    if isinstance(audio, Tensor):
        audio = audio.detach().cpu()
        return (audio.float() if audio.is_floating_point() else audio).numpy()  # numpy has no bfloat16
    return np.asarray(audio)


def clip_of_file(audio: Path | BinaryIO, to_hz: int, *, declared_hz: float | None = None) -> Clip:
    """Opens an audio file as a clip at `to_hz`. It is decoded to its end, because headers may be wrong.

    Args:
        audio: a path, or a seekable binary file object.
        declared_hz: the file's rate according to the caller; None reads it from the file.

    Raises:
        AudioError: missing, damaged or empty file, another rate than declared, or samples that are not finite.
        UnreadableError: it cannot be read now.
    """

    def decode(source: AudioSource) -> Iterator[NDArray[np.float32]]:
        if declared_hz is not None and declared_hz != source.rate_hz:
            raise AudioError(
                f"{source.origin}: the file is at {source.rate_hz} Hz, not at {declared_hz:g} Hz as given; leave the "
                "rate out"
            )
        return resampled(mixed_blocks(source), source.rate_hz, to_hz)

    return measured_clip(audio, decode)


def measured_clip(
    audio: Path | BinaryIO,
    decode: Callable[[AudioSource], Iterator[NDArray[np.float32]]],
    *,
    start_s: float = 0.0,
    origin: str | None = None,
) -> Clip:
    """Returns the blocks [S] that `decode` makes of a file as a clip of their true length.

    Args:
        decode: called a second time if the clip is too long to be held in memory.
        start_s: where it begins in the file, for messages.
        origin: name in messages; default: the path.

    Raises:
        AudioError: as `open_audio` says; also if the file has no sample.
        UnreadableError: the file cannot be read now.
    """
    held: list[NDArray[np.float32]] = []
    samples = 0
    with open_audio(audio, origin=origin) as source:
        for block_S in decode(source):
            samples += len(block_S)
            if samples <= _HELD_SAMPLES:
                held.append(block_S.copy())  # a view would keep its whole context
            else:
                held.clear()
        origin, note = source.origin, source.note
    if not samples:
        raise no_audio(origin, start_s)
    blocks = iter(held) if samples <= _HELD_SAMPLES else _decoded_again(audio, decode, origin)
    return Clip(blocks, samples, origin=origin, note=note)


def mixed_blocks(source: AudioSource, *, first: int = 0, samples: int | None = None) -> Iterator[NDArray[np.float32]]:
    """Yields `source.blocks(first, samples)` averaged over the channels, [S].

    Raises:
        AudioError: damage, or samples that are not finite. UnreadableError: it cannot be read now.
    """
    for block_SC in source.blocks(first, samples):
        yield mix_down(block_SC.T, origin=source.origin, first_sample=first)
        first += len(block_SC)


def clip_of_samples(audio: NDArray, from_hz: float, to_hz: int) -> Clip:
    """Makes a clip at `to_hz` from samples [S] or [C, S]; reading mixes them down block by block.

    Raises:
        AudioError: an array or a rate that cannot be audio, or, while reading, samples that are not finite.
    """
    audio_CS, rate_hz = as_channels(audio), plausible_rate_hz(from_hz, origin="audio")
    samples = audio_CS.shape[1]
    size = rate_hz * BLOCK_S
    pieces = (
        mix_down(audio_CS[:, start : start + size], origin="audio", first_sample=start)
        for start in range(0, samples, size)
    )
    return Clip(resampled(pieces, rate_hz, to_hz), resampled_length(samples, rate_hz, to_hz), origin="audio")


def resampled_length(samples: int, from_hz: int, to_hz: int) -> int:
    """Returns the number of samples that `resample` makes."""
    return resampled_samples(samples, *resampling_ratio(from_hz, to_hz))


def resampled(blocks: Iterator[NDArray[np.float32]], from_hz: int, to_hz: int) -> Iterator[NDArray[np.float32]]:
    """Resamples consecutive blocks [S] as if they were one array; on one thread, to the same bits."""
    if from_hz == to_hz:
        yield from blocks
        return
    old, new = resampling_ratio(from_hz, to_hz)
    # cut at multiples of `old` samples, where the filters of input and output are in phase
    unit = old * _PERIODS_PER_CUT
    reach = _CONTEXT_CROSSINGS * max(old / new, 1)  # input samples
    after = unit * math.ceil(reach / unit)
    before = unit * math.ceil(max(reach, _CONTEXT_BEFORE_SAMPLES) / unit)
    held = np.zeros(0, np.float32)
    behind = 0  # samples of `held` that are only context: their output was yielded before
    for block in blocks:
        held = np.concatenate([held, block])
        ready = (len(held) - after) // unit * unit
        if ready - behind >= _CONTEXT_BEFORE_SAMPLES:
            yield resample(held, from_hz, to_hz)[behind // old * new : ready // old * new]
            keep_from = max(ready - before, 0)
            held, behind = held[keep_from:], ready - keep_from
    if len(held) > behind:
        yield resample(held, from_hz, to_hz)[behind // old * new :]


def log_mel_of_clip(clip: Clip, first_frame: int, num_frames: int, *, samples: int, config: FrontendConfig) -> Tensor:
    """Computes frames of a clip's log-mel spectrogram [1, T, F], equal to those of `log_mel_slice`.

    Args:
        samples: length at whose end the audio is reflected; silence fills the clip up to it.
    """
    start, stop = frame_span(first_frame, num_frames, config)
    first = max(start, 0)  # a frame's window may begin before the clip; reflection fills it
    audio_BS = clip.read(first, min(stop, samples))[None]
    padded_BS = torch.nn.functional.pad(audio_BS, (first - start, max(stop - samples, 0)), mode="reflect")
    return log_mel_of_span(padded_BS, config)


def _decoded_again(
    audio: Path | BinaryIO, decode: Callable[[AudioSource], Iterator[NDArray[np.float32]]], origin: str
) -> Iterator[NDArray[np.float32]]:
    with open_audio(audio, origin=origin) as source:
        yield from decode(source)
