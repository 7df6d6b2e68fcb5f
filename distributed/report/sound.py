"""Sound from a crop's log-mel: a reader hears the information that the model gets.

The shards hold no audio, so the phases are estimated (Griffin and Lim, 1984): it sounds hollow, but melody, rhythm and
instruments are recognisable.

Shapes: T frames, F mel bands, S samples of audio.
"""

import base64
import io

import numpy as np
import soundfile
import torch
from torch import Tensor

from distributed.run.installed import torchaudio_functional
from pupujepa.audio.log_mel import FrontendConfig, mel_filter_bank

ITERATIONS = 48
MOMENTUM = 0.99
PEAK = 0.8
# a smaller peak is silence with rounding errors, and is not scaled up
QUIET = 1e-3
FADE_S = 0.01


def audio_of(mel_TF: np.ndarray, config: FrontendConfig) -> np.ndarray:
    """Returns mono audio [S] at the front end's rate, with a peak of 0.8, (T - 1) * hop samples long.

    Raises:
        TorchaudioError: torchaudio, which has Griffin-Lim, cannot be loaded.
    """
    griffinlim = torchaudio_functional(without="the page has no sound").griffinlim
    # the floor of the logarithm is silence, not noise
    energy_TF = (torch.from_numpy(np.ascontiguousarray(mel_TF)).double().exp() - config.floor).clamp_min(0)
    inverse = torch.linalg.pinv(mel_filter_bank(config).double())
    magnitude_KT = (energy_TF @ inverse).clamp_min(0).T.float()
    audio_S = griffinlim(
        magnitude_KT,
        window=torch.hann_window(config.window_samples),
        n_fft=config.n_fft,
        hop_length=config.hop_samples,
        win_length=config.window_samples,
        power=1.0,
        n_iter=ITERATIONS,
        momentum=MOMENTUM,
        length=None,
        # a random start would draw from the global generator
        rand_init=False,
    )
    return _faded(audio_S, round(FADE_S * config.sample_rate_hz)).numpy()


def audio_uri(audio_S: np.ndarray, rate_hz: int) -> str:
    """Returns the audio as an MP3 data URI, which every browser plays; as WAV if libsndfile has no MP3."""
    format_, kind = ("MP3", "mpeg") if "MP3" in soundfile.available_formats() else ("WAV", "wav")
    buffer = io.BytesIO()
    soundfile.write(buffer, audio_S, rate_hz, format=format_)
    return f"data:audio/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def _faded(audio_S: Tensor, fade_samples: int) -> Tensor:
    ramp = torch.linspace(0, 1, min(fade_samples, len(audio_S) // 2))
    audio_S[: len(ramp)] *= ramp
    audio_S[len(audio_S) - len(ramp) :] *= ramp.flip(0)
    return audio_S * (PEAK / audio_S.abs().max().clamp_min(QUIET))
