"""One window of a track as input of an encoder: cut, one channel, resampled, zero-padded.

The order is MARBLE's: cut, reduce channels, resample, pad. Resampling the whole file before cutting would change the
samples at the edges of windows.

Legend: S samples, C channels.
"""

import logging
from functools import cache

import numpy as np

from distributed.marble.datasets.corpus import LabelledTrack, Slice
from distributed.marble.tasks.tasks import Clips
from pupujepa.audio.read import AudioError, mix_down, resample
from pupujepa.audio.source import open_audio
from pupujepa.errors import UserError

log = logging.getLogger(__name__)


def load_slice(track: LabelledTrack, which: Slice, clips: Clips, *, rate_hz: int) -> np.ndarray:
    """Returns one window [S] at `rate_hz`, S = seconds * rate_hz rounded down.

    It is zero after the end of the track. A file of another length than it announces is logged once.

    Raises:
        UserError: the file cannot be decoded, its sample rate is not its manifest's, or it lacks the channel.
        UnreadableError: it cannot be read now.
    """
    seconds = clips.seconds
    with open_audio(track.path) as source:
        if track.rate_hz is None:
            first, samples = round(which.index * seconds * source.rate_hz), round(seconds * source.rate_hz)
        else:
            _require_rate(track, source.rate_hz)
            samples = track.window_samples(seconds)
            first = which.index * samples
        blocks = list(source.blocks(first, samples))
        if source.note:
            _tell(source.note)
    if blocks:
        audio_CS = _channels(track, which, np.concatenate(blocks).T)
        audio_S = mix_down(audio_CS, origin=source.origin, first_sample=first)
    else:
        audio_S = _silence(track, which)
    length = int(seconds * rate_hz)
    if len(audio_S):
        audio_S = resample(audio_S, source.rate_hz, rate_hz)[:length]
    return np.pad(audio_S, (0, length - len(audio_S))).astype(np.float32)


def tell_wrong_lengths() -> None:
    """Logs how many of the files that this process has read have another length than they announce."""
    if count := _tell.cache_info().currsize:
        log.warning("%d audio files have another length than they announce, as named above", count)


@cache
def _tell(note: str) -> None:
    log.warning("%s", note)


def _require_rate(track: LabelledTrack, rate_hz: int) -> None:
    if rate_hz != track.rate_hz:
        raise UserError(
            f"{track.path}: has {rate_hz} Hz but its manifest says {track.rate_hz}, so every window would be shifted; "
            "fetch the file again, or use --protocol clean, which reads the file's header"
        )


def _channels(track: LabelledTrack, which: Slice, audio_CS: np.ndarray) -> np.ndarray:
    if which.channel != "mix":
        if int(which.channel) >= len(audio_CS):
            raise UserError(
                f"{track.path}: has {len(audio_CS)} channels but its manifest says {track.num_channels}; "
                "fetch the file again, or use --protocol clean, which reads the file's header"
            )
        return audio_CS[[int(which.channel)]]
    return audio_CS


def _silence(track: LabelledTrack, which: Slice) -> np.ndarray:
    """Returns no sample for a window that a manifest of MARBLE's promises; our own lists must be right."""
    if track.rate_hz is None:
        raise AudioError(f"{track.path}: holds no audio in window {which.index}; correct the track's duration_s")
    log.warning(
        "%s: has no audio in window %d, though its manifest counts %d samples; the window is silent",
        track.path,
        which.index,
        track.num_samples,
    )
    return np.zeros(0, dtype=np.float32)
