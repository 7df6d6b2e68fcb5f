"""Clips read forward in blocks: hours of audio decoded and resampled in the memory of seconds.

Each block is resampled with context on both sides, so their concatenation equals the resampled whole.

Shapes: S samples of audio, C channels.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from pupujepa.audio.read import (
    AudioError,
    as_channels,
    mix_down,
    require_file,
    resample,
    resampling_ratio,
    whole_rate_hz,
)
from pupujepa.audio.resampling import resampled_samples

_BLOCK_S = 30
# the filter of resampling.py reaches 6 zero crossings of the lower rate; 16 leaves a wide margin
_CONTEXT_CROSSINGS = 16


class Clip:
    """Mono audio of known rate and length, read forward; audio before the last read is dropped.

    Args:
        blocks: consecutive stretches [S].
        samples: their total length.
        origin: name of the audio in messages.
    """

    def __init__(self, blocks: Iterator[NDArray[np.float32]], samples: int, *, origin: str) -> None:
        self.samples = samples
        self.origin = origin
        self._blocks = blocks
        self._held = torch.zeros(0)
        self._start = 0

    def read(self, start: int, stop: int) -> Tensor:
        """Returns samples [start, stop); silence beyond the end.

        Args:
            start: not before the start of an earlier read.

        Raises:
            AudioError: the audio ends before its announced length.
        """
        assert start >= self._start, "a clip is read forward only"
        parts = [self._held[start - self._start :]] if start - self._start < len(self._held) else []
        have = self._start + len(self._held)
        while have < min(stop, self.samples):
            block = next(self._blocks, None)
            if block is None:
                raise AudioError(
                    f"{self.origin}: ends after {have} samples although it announced {self.samples}; repair it"
                )
            parts.append(torch.from_numpy(block)[max(start - have, 0) :])  # skipped audio is never held
            have += len(block)
        self._held = torch.cat(parts) if parts else torch.zeros(0)
        self._start = start
        found = self._held[: min(stop, self.samples) - start]
        return torch.nn.functional.pad(found, (0, stop - start - len(found)))


def clip_of_file(path: Path, to_hz: int, *, declared_hz: float | None = None) -> Clip:
    """Opens an audio file as a clip at `to_hz`.

    Args:
        declared_hz: the file's rate according to the caller; None reads it from the file.

    Raises:
        AudioError: missing, unreadable or empty file, another rate than declared, or samples that are not finite; some
            are found only while reading.
    """
    require_file(path, origin=str(path))
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{path}: cannot be decoded as audio ({error}); convert it to wav, flac, ogg or mp3"
        ) from error
    if not info.frames:
        raise AudioError(f"{path}: holds no audio; remove it")
    if declared_hz is not None and declared_hz != info.samplerate:
        raise AudioError(
            f"{path}: the file is at {info.samplerate} Hz, not at {declared_hz:g} Hz as given; leave the rate out"
        )
    blocks = _resampled(_decoded(path, info.samplerate * _BLOCK_S), info.samplerate, to_hz)
    return Clip(blocks, resampled_length(info.frames, info.samplerate, to_hz), origin=str(path))


def clip_of_samples(audio: NDArray, from_hz: float, to_hz: int) -> Clip:
    """Makes a clip at `to_hz` from samples [S] or [C, S]; reading mixes them down block by block.

    Raises:
        AudioError: an array or a rate that cannot be audio, or, while reading, samples that are not finite.
    """
    audio_CS, rate_hz = as_channels(audio), whole_rate_hz(from_hz)
    samples = audio_CS.shape[1]
    size = rate_hz * _BLOCK_S
    pieces = (
        mix_down(audio_CS[:, start : start + size], origin="audio", first_sample=start)
        for start in range(0, samples, size)
    )
    return Clip(_resampled(pieces, rate_hz, to_hz), resampled_length(samples, rate_hz, to_hz), origin="audio")


def resampled_length(samples: int, from_hz: int, to_hz: int) -> int:
    """Returns the number of samples that `resample` makes."""
    return resampled_samples(samples, *resampling_ratio(from_hz, to_hz))


def _decoded(path: Path, block_samples: int) -> Iterator[NDArray[np.float32]]:
    try:
        with soundfile.SoundFile(path) as file:
            start = 0
            for block_SC in file.blocks(block_samples, dtype="float32", always_2d=True):
                yield mix_down(block_SC.T, origin=str(path), first_sample=start)
                start += len(block_SC)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: cannot be decoded to its end ({error}); repair or remove it") from error


def _resampled(blocks: Iterator[NDArray[np.float32]], from_hz: int, to_hz: int) -> Iterator[NDArray[np.float32]]:
    """Resamples consecutive blocks as if they were one array."""
    if from_hz == to_hz:
        yield from blocks
        return
    old, new = resampling_ratio(from_hz, to_hz)
    # cut at multiples of `old` samples, where the filters of input and output are in phase
    reach = _CONTEXT_CROSSINGS * max(old / new, 1)  # input samples
    context = old * math.ceil(reach / old)
    held = np.zeros(0, np.float32)
    behind = 0  # samples of `held` that are only context: their output was yielded before
    for block in blocks:
        held = np.concatenate([held, block])
        ready = (len(held) - context) // old * old
        if ready > behind:
            yield resample(held, from_hz, to_hz)[behind // old * new : ready // old * new]
            keep_from = max(ready - context, 0)
            held, behind = held[keep_from:], ready - keep_from
    yield resample(held, from_hz, to_hz)[behind // old * new :]
