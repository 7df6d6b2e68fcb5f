"""Waveforms: float32 mono from samples of any type, resampling, and errors for unusable audio.

NaN or empty audio is an error here, before it can become a row of a corpus or an embedding.

Shapes: S samples, C channels.
"""

from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from pupujepa.audio.resampling import resample_by_ratio
from pupujepa.errors import UserError

# in lower case: usual containers of music that libsndfile decodes
_SUFFIXES = ".aif .aifc .aiff .au .bwf .caf .flac .mp2 .mp3 .mpga .oga .ogg .opus .rf64 .snd .w64 .wave .wav"
AUDIO_SUFFIXES = tuple(_SUFFIXES.split())

_LARGEST_TERM = 4000
# from below the slowest telephone to above the fastest converter of music
_LOWEST_HZ, _HIGHEST_HZ = 1_000, 1_000_000
# numpy sums fewer values than these one after the other, but more in another order
_CHANNELS_IN_PAIRS = 8


class AudioError(UserError):
    """An audio file or array that cannot be used."""


def no_audio(origin: str, start_s: float = 0.0) -> AudioError:
    """Returns the error for a file that holds no sample from `start_s` on."""
    return AudioError(
        f"{origin}: holds no audio" + (f" from {start_s:g} s on; choose an earlier start" if start_s else "; remove it")
    )


def mono(audio_CS: NDArray, *, origin: str = "audio") -> NDArray[np.float32]:
    """Averages channels [C, S] (or [S]) to float32 [S]; integer samples are scaled to full scale 1.

    Raises:
        AudioError: no samples, more than two dimensions, more channels than samples, a type that is not audio, or
            values that are not finite.
    """
    return mix_down(as_channels(audio_CS, origin=origin), origin=origin)


def as_channels(audio: NDArray, *, origin: str = "audio") -> NDArray:
    """Returns samples [S] or [C, S] as [C, S] without a copy or a check of their values.

    Raises:
        AudioError: no samples, more than two dimensions, more channels than samples, or a type that is not audio.
    """
    audio = np.asarray(audio)
    if audio.ndim not in (1, 2) or not audio.size:
        raise AudioError(f"{origin}: expected samples [S] or [channels, S], not an array of shape {audio.shape}")
    if audio.ndim == 2 and audio.shape[0] > audio.shape[1]:
        raise AudioError(f"{origin}: shape {audio.shape} has more channels than samples; transpose to [channels, S]")
    if audio.dtype.kind not in "fi":
        raise AudioError(f"{origin}: samples of type {audio.dtype} are not audio; use floats or signed integers")
    return np.atleast_2d(_narrowed(audio) if audio.dtype in (np.int32, np.int64) else audio)


def _narrowed(audio: NDArray) -> NDArray:
    """Returns integers in the type of their audio: 16 bits if all fit.

    numpy makes int64 of a list of 16-bit samples; scaled by 2^63 they would be silence. As int32 they would be below
    -96 dB, which no recording is. An int64 also holds samples of 24 or 32 bits.
    """
    most = max(int(audio.max()), ~int(audio.min()))
    if most < 1 << 15:
        return audio.astype(np.int16)
    if audio.dtype == np.int64 and most < 1 << 23:
        return audio.astype(np.int32) << 8
    return audio.astype(np.int32) if most < 1 << 31 else audio


def mix_down(audio_CS: NDArray, *, origin: str, first_sample: int = 0) -> NDArray[np.float32]:
    """Averages the channels of a stretch of audio of any length to float32 [S]; see `mono`.

    Args:
        first_sample: position of the stretch in its audio, for messages.

    Raises:
        AudioError: values that are not finite.
    """
    if audio_CS.dtype.kind == "i":
        audio_CS = audio_CS / -float(np.iinfo(audio_CS.dtype).min)
    mixed_S = _mean_of_channels(audio_CS)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is reported below
        audio_S = np.ascontiguousarray(mixed_S, dtype=np.float32)
    if not np.isfinite(audio_S).all():
        bad = first_sample + int(np.flatnonzero(~np.isfinite(audio_S))[0])
        raise AudioError(f"{origin}: sample {bad} is not finite, so every feature would be NaN; repair or remove it")
    return audio_S


def _mean_of_channels(audio_CS: NDArray) -> NDArray:
    """Returns the bits of `mean(0)`, in a fifteenth of its time for interleaved channels."""
    channels = len(audio_CS)
    # numpy sums half precision in single precision
    if audio_CS.dtype not in (np.float32, np.float64) or channels >= _CHANNELS_IN_PAIRS:
        return audio_CS.mean(0)
    if channels == 1:
        return audio_CS[0]
    mixed_S = audio_CS[0] + audio_CS[1]
    for channel_S in audio_CS[2:]:
        mixed_S += channel_S
    mixed_S /= channels
    return mixed_S


def whole_rate_hz(rate_hz: float) -> int:
    """Returns a sample rate as an integer.

    Raises:
        AudioError: a rate that is not a positive whole number of Hz.
    """
    if not rate_hz > 0 or rate_hz != rate_hz // 1:
        raise AudioError(f"sample rates must be positive whole numbers of Hz, not {rate_hz}")
    return int(rate_hz)


def plausible_rate_hz(rate_hz: float, *, origin: str) -> int:
    """Returns a sample rate as an integer.

    Raises:
        AudioError: a rate that audio cannot have: damage, or an array with the wrong rate.
    """
    rate_hz = whole_rate_hz(rate_hz)
    if not _LOWEST_HZ <= rate_hz <= _HIGHEST_HZ:
        raise AudioError(
            f"{origin}: a sample rate of {rate_hz} Hz is not audio's ({_LOWEST_HZ} to {_HIGHEST_HZ} Hz); correct it"
        )
    return rate_hz


def resample(audio_S: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """Resamples [S] (or [..., S]) with the windowed sinc filter of resampling.py.

    Returns:
        [ceil(S * to_hz / from_hz)]; the audio itself if the rates are equal.

    Raises:
        AudioError: a rate that is not a positive whole number of Hz.
    """
    if from_hz == to_hz:
        return audio_S
    old, new = resampling_ratio(from_hz, to_hz)
    return resample_by_ratio(torch.from_numpy(audio_S), old, new).numpy()


def resampling_ratio(from_hz: int, to_hz: int) -> tuple[int, int]:
    """Returns input and output samples per period of the filter: from_hz / to_hz in lowest terms.

    Terms above 4,000, which no common rate has, would need filters of gigabytes, so the nearest smaller ones are used.
    The error is below a quarter of a cent of pitch, or half a second in an hour.

    Raises:
        AudioError: a rate that is not a positive whole number of Hz.
    """
    ratio = Fraction(whole_rate_hz(from_hz), whole_rate_hz(to_hz)).limit_denominator(_LARGEST_TERM)
    return ratio.numerator, ratio.denominator
