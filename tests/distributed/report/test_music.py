"""The sound of a crop: its log-mel is the one that it was made from."""

import base64
import io

import numpy as np
import soundfile
import torch

from distributed.report.music import PEAK, audio_of, audio_uri
from pupujepa.audio.log_mel import FrontendConfig, log_mel

CONFIG = FrontendConfig()


def chord(seconds=1.0):
    time_s = np.arange(int(seconds * CONFIG.sample_rate_hz)) / CONFIG.sample_rate_hz
    audio = sum(np.sin(2 * np.pi * f * time_s) * np.exp(-3 * (time_s % 0.5)) for f in (220.0, 277.2, 329.6))
    return log_mel(torch.from_numpy(audio.astype(np.float32))[None], CONFIG)[0].numpy()


def test_the_front_end_hears_the_same_spectrogram():
    """Up to a gain, and but for the faded edges, the rebuilt audio has the log-mel that was asked for."""
    mel_TF = chord()
    again_TF = log_mel(torch.from_numpy(audio_of(mel_TF, CONFIG))[None], CONFIG)[0].numpy()
    wanted_TF, again_TF = mel_TF[5 : len(again_TF) - 5], again_TF[5:-5]
    loud = wanted_TF > mel_TF.max() - 5

    def mismatch(candidate_TF):
        error = (candidate_TF - wanted_TF)[loud]
        return np.abs(error - np.median(error)).mean()

    assert mismatch(again_TF) < 0.4
    assert mismatch(again_TF) < mismatch(np.roll(again_TF, 25, axis=0)) / 3


def test_the_same_crop_gives_the_same_sound_within_full_scale():
    """No random phases, no clipping, and the global random state is left alone."""
    state = torch.get_rng_state()
    first, second = audio_of(chord(), CONFIG), audio_of(chord(), CONFIG)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first).max() <= PEAK + 1e-6
    assert torch.equal(torch.get_rng_state(), state)


def test_silence_stays_silent():
    """Digital silence has no peak to be scaled up."""
    silence = np.full((100, 128), np.log(CONFIG.floor), np.float32)
    assert np.abs(audio_of(silence, CONFIG)).max() < 1e-3


def test_the_page_carries_playable_audio():
    """The data URI decodes to the audio, as long as it was."""
    audio = audio_of(chord(), CONFIG)
    uri = audio_uri(audio, CONFIG.sample_rate_hz)
    decoded, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert rate_hz == CONFIG.sample_rate_hz
    assert abs(len(decoded) - len(audio)) < 3000  # MP3 pads to whole blocks
    assert len(uri) < 40_000
