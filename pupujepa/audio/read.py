"""Audio input: decoding of files to float32 mono, resampling, and errors for unusable audio.

libsndfile decodes the files (wav, flac, ogg, mp3, aiff, ...). NaN or empty audio is an error here, before it can become
a row of a corpus or an embedding.

Shapes: S samples, C channels.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from pupujepa.audio.resampling import resample_by_ratio
from pupujepa.errors import UserError

# in lower case: usual containers of music that libsndfile decodes
_SUFFIXES = ".aif .aifc .aiff .au .bwf .caf .flac .mp2 .mp3 .mpga .oga .ogg .opus .rf64 .snd .w64 .wave .wav"
AUDIO_SUFFIXES = tuple(_SUFFIXES.split())

_LARGEST_TERM = 4000
# numpy sums fewer values than these one after the other, but more in another order
_CHANNELS_IN_PAIRS = 8


class AudioError(UserError):
    """An audio file or array that cannot be used."""


def read_audio(
    path: str | Path, *, start_s: float = 0.0, duration_s: float | None = None, origin: str | None = None
) -> tuple[NDArray[np.float32], int]:
    """Decodes a stretch of an audio file.

    Args:
        duration_s: None reads to the end; a file that ends sooner gives less.
        origin: name of the audio in messages, if the file is only a copy.

    Returns:
        Mono audio [S] (mean over the channels) and its sample rate in Hz.

    Raises:
        AudioError: missing, unreadable or empty file, a stretch beyond its end, or samples that are not finite.
    """
    path = Path(path)
    origin = str(path) if origin is None else origin
    require_file(path, origin=origin)
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            frames = -1 if duration_s is None else round(duration_s * rate)
            file.seek(min(round(start_s * rate), file.frames))
            audio_SC = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            f"{origin}: cannot be decoded as audio ({error}); convert it to wav, flac, ogg or mp3"
        ) from error
    if not len(audio_SC):
        raise AudioError(f"{origin}: holds no audio from {start_s:g} s on; remove it or choose an earlier start")
    return mono(audio_SC.T, origin=origin), rate


def require_file(path: Path, *, origin: str) -> None:
    """Checks that a file exists.

    Raises:
        AudioError: it does not, or is a folder.
    """
    if path.is_dir():
        raise AudioError(f"{origin}: is a folder and not an audio file; name a file in it")
    if not path.is_file():
        raise AudioError(f"{origin}: no such audio file; check the path")


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
    return np.atleast_2d(audio)


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
