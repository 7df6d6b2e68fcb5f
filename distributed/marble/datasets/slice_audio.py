"""One window of a track as input of an encoder: cut, one channel, resampled, zero-padded.

The order is MARBLE's: cut, reduce channels, resample, pad. Resampling the whole file before cutting would change the
samples at the edges of windows.

Legend: S samples, C channels.
"""

import logging

import numpy as np
import soundfile

from distributed.marble.datasets.corpus import LabelledTrack, Slice
from distributed.marble.tasks.tasks import Clips
from pupujepa.audio.read import AudioError, mix_down, read_audio, resample
from pupujepa.errors import UserError

log = logging.getLogger(__name__)


def load_slice(track: LabelledTrack, which: Slice, clips: Clips, *, rate_hz: int) -> np.ndarray:
    """Returns one window [S] at `rate_hz`, S = seconds * rate_hz rounded down.

    It is zero after the end of the track.

    Raises:
        UserError: the file cannot be decoded, its sample rate is not its manifest's, or it lacks the channel.
    """
    seconds = clips.seconds
    if track.rate_hz is None:
        audio_S, from_hz = read_audio(track.path, start_s=which.index * seconds, duration_s=seconds)
    else:
        audio_S, from_hz = _read_window(track, which, track.window_samples(seconds)), track.rate_hz
    length = int(seconds * rate_hz)
    if len(audio_S):
        audio_S = resample(audio_S, from_hz, rate_hz)[:length]
    return np.pad(audio_S, (0, length - len(audio_S))).astype(np.float32)


def _read_window(track: LabelledTrack, which: Slice, samples: int) -> np.ndarray:
    try:
        with soundfile.SoundFile(track.path) as file:
            if file.samplerate != track.rate_hz:
                raise UserError(
                    f"{track.path}: has {file.samplerate} Hz but its manifest says {track.rate_hz}, so every window "
                    "would be shifted; fetch the file again, or use --protocol clean, which reads the file's header"
                )
            file.seek(min(which.index * samples, file.frames))
            audio_CS = file.read(samples, dtype="float32", always_2d=True).T
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"{track.path}: cannot be decoded as audio ({error}); fetch the file again") from error
    if not audio_CS.shape[1]:
        log.warning(
            "%s: has no audio in window %d, though its manifest counts %d samples; the window is silent",
            track.path,
            which.index,
            track.num_samples,
        )
        return np.zeros(0, dtype=np.float32)
    if which.channel != "mix":
        if int(which.channel) >= len(audio_CS):
            raise UserError(
                f"{track.path}: has {len(audio_CS)} channels but its manifest says {track.num_channels}; "
                "fetch the file again, or use --protocol clean, which reads the file's header"
            )
        audio_CS = audio_CS[[int(which.channel)]]
    return mix_down(audio_CS, origin=str(track.path))
