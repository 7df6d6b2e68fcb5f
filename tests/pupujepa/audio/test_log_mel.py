import math

import librosa
import numpy as np
import pytest
import torch

from pupujepa.audio.log_mel import (
    LOG_FLOOR,
    RELEASED_MEAN,
    RELEASED_STD,
    FrontendConfig,
    frontend_digest,
    log_mel,
    log_mel_slice,
    mel_filter_bank,
    normalise,
)
from pupujepa.errors import UserError


def chord_with_noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Tones over three octaves, swelling, on a floor of noise: loud, quiet and broadband at once."""
    t = np.arange(round(seconds * 24_000)) / 24_000
    tones = sum(np.sin(2 * np.pi * f * t) for f in (110.0, 277.2, 659.3, 2793.8))
    noise = np.random.default_rng(seed).normal(size=len(t))
    return (0.15 * tones * np.sin(np.pi * t / seconds) ** 2 + 0.01 * noise).astype(np.float32)


def librosa_log_mel(audio: np.ndarray) -> np.ndarray:
    padded = np.pad(audio.astype(np.float64), 392, mode="reflect")
    spectrum = librosa.stft(padded, n_fft=1024, hop_length=240, win_length=1024, window="hann", center=False)
    magnitude = np.sqrt(np.abs(spectrum) ** 2 + 1e-9)
    bank = librosa.filters.mel(sr=24_000, n_fft=1024, n_mels=128, fmin=0, fmax=12_000)
    return np.log(np.maximum(bank @ magnitude, 1e-5)).T


@pytest.mark.parametrize("samples", [24_000, 24_001, 24_239, 245_760])
def test_agrees_with_librosa(samples):
    """The log-mel equals librosa's to 1e-4, for any remainder of the length."""
    audio = chord_with_noise(samples / 24_000 + 0.01)[:samples]
    expected = librosa_log_mel(audio)
    ours = log_mel(torch.from_numpy(audio)[None])[0].numpy()
    assert ours.shape == expected.shape == (samples // 240, 128)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_filter_bank_is_librosas():
    """The mel filter bank is librosa's default one."""
    expected = librosa.filters.mel(sr=24_000, n_fft=1024, n_mels=128, fmin=0, fmax=12_000).T
    np.testing.assert_allclose(mel_filter_bank(FrontendConfig()).numpy(), expected, atol=2e-7)


def test_bands_between_the_bins_are_said(caplog):
    """64 points cannot resolve the lowest of 40 bands; the log counts those without a bin."""
    config = FrontendConfig(n_fft=64, hop_samples=32, window_samples=64, mel_bands=40)
    empty = int((mel_filter_bank(config) == 0).all(0).sum())
    assert 0 < empty < 40
    assert f"{empty} of 40 mel bands contain no bin of n_fft=64 and stay silent" in caplog.text


def test_silence_is_the_documented_constant():
    """Digital silence maps to the floor, and to -3.667 after the released normalisation."""
    mel = log_mel(torch.zeros(1, 24_000))
    torch.testing.assert_close(mel, torch.full_like(mel, LOG_FLOOR))
    assert normalise(mel, RELEASED_MEAN, RELEASED_STD).mean().item() == pytest.approx(-3.667, abs=5e-4)
    assert pytest.approx(math.log(1e-5)) == LOG_FLOOR


def test_one_crop_is_1024_frames():
    """245,760 samples (10.24 s) are one training crop, 4 s are 400 frames."""
    assert log_mel(torch.zeros(2, 245_760)).shape == (2, 1024, 128)
    assert log_mel(torch.zeros(1, 96_000)).shape == (1, 400, 128)


@pytest.mark.parametrize(("first", "count"), [(0, 100), (0, 1), (17, 31), (399, 1), (300, 100)])
def test_slice_equals_the_whole(first, count):
    """A slice computed on its own equals that slice of the whole, at both reflected ends too."""
    audio = torch.from_numpy(chord_with_noise(4.003))[None]
    whole = log_mel(audio)
    part = log_mel_slice(audio, first, num_frames=count)
    torch.testing.assert_close(part, whole[:, first : first + count], atol=1e-5, rtol=0)


def test_slice_beyond_the_end_is_refused():
    """Frames that the audio does not have are an error, not padding."""
    with pytest.raises(UserError, match=r"frames 90\.\.110 are not within the audio's 100 frames"):
        log_mel_slice(torch.zeros(1, 24_000), 90, num_frames=20)


def test_too_short_audio_is_refused():
    """Audio shorter than the reflected padding is an error with the shortest valid length."""
    with pytest.raises(UserError, match=r"audio of 392 samples is too short.*at least 393 samples"):
        log_mel(torch.zeros(1, 392))
    assert log_mel(torch.zeros(1, 393)).shape == (1, 1, 128)


def test_digest_tells_front_ends_apart():
    """Equal configs have equal digests; any changed field changes it."""
    assert frontend_digest(FrontendConfig()) == frontend_digest(FrontendConfig())
    assert frontend_digest(FrontendConfig()) != frontend_digest(FrontendConfig(fmax_hz=11_000.0))
    assert len(frontend_digest(FrontendConfig())) == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fmax_hz": 12_001.0}, "does not fit below 12000.0 Hz"),
        ({"hop_samples": 241}, "differ from it by an even number"),
        ({"window_samples": 2048}, "window_samples=2048 must be in 1..n_fft=1024"),
    ],
)
def test_impossible_front_ends_are_refused(change, message):
    """Impossible front ends are errors on construction."""
    with pytest.raises(UserError, match=message):
        FrontendConfig(**change)
