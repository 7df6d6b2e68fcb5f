"""The resampler and the mel filter bank have the bits of torchaudio's, so that older corpora keep their digests."""

from itertools import product

import numpy as np
import pytest
import torch
from torchaudio import functional as reference

from pupujepa.audio.log_mel import FrontendConfig, mel_filter_bank
from pupujepa.audio.read import resample, resampling_ratio

RATES_HZ = (8000, 11_025, 12_000, 16_000, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000, 192_000)
# one sample, less than the filter reaches, batches, and more than a block of any kernel
SHAPES = ((1,), (7,), (100,), (5003,), (2, 3001), (2, 3, 1024), (40_000,))


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Fails for another shape, dtype or bit, including the sign of a zero."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("from_hz", RATES_HZ)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resampled_audio_has_torchaudios_bits(from_hz, dtype):
    """Resampling to 24 kHz, and to the rates of other encoders and back, has torchaudio's bits for any shape."""
    rng = np.random.default_rng(from_hz)
    for to_hz, shape in product((24_000, 16_000, 44_100), SHAPES):
        if from_hz == to_hz:
            continue
        audio = rng.standard_normal(shape).astype(dtype)
        theirs = reference.resample(torch.from_numpy(audio), from_hz, to_hz).numpy()
        assert_same_bits(resample(audio, from_hz, to_hz), theirs)


@pytest.mark.parametrize("from_hz", [15_999, 23_997, 24_001, 44_056, 47_952])
def test_an_odd_rate_has_torchaudios_bits_at_the_ratio_that_stands_for_it(from_hz):
    """Filters of megabytes, too large for the cache, are the same too."""
    audio = np.random.default_rng(0).standard_normal(30_000).astype(np.float32)
    theirs = reference.resample(torch.from_numpy(audio), *resampling_ratio(from_hz, 24_000)).numpy()
    assert_same_bits(resample(audio, from_hz, 24_000), theirs)


def test_beyond_2_to_the_24_samples_only_the_length_differs():
    """torchaudio rounds the length to a float32: it drops a sample, or adds one of the filter's tail."""
    for samples, off in ((5_592_407, -1), (5_592_409, 1)):
        audio = np.zeros(samples, np.float32)
        audio[-1000:] = np.random.default_rng(0).standard_normal(1000)
        theirs = reference.resample(torch.from_numpy(audio), 8000, 24_000).numpy()
        ours = resample(audio, 8000, 24_000)
        assert len(ours) == 3 * samples > 2**24
        assert len(theirs) == len(ours) + off
        assert_same_bits(ours[: len(theirs)], theirs[: len(ours)])


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 22_050, 24_000, 24_001, 44_100, 48_000])
def test_filter_banks_have_torchaudios_bits(rate_hz):
    """The banks are equal for any number of bins and bands, below, across and above the scale's bend at 1 kHz."""
    ranges = ((0.0, 1.0), (0.0, 0.8), (30.0, 0.9), (1000.0, 0.6), (1200.0, 0.98), (0.0, 0.2))
    for n_fft, bands, (lowest_hz, share) in product((1000, 1024, 2048, 4096), (1, 2, 16, 40), ranges):
        config = FrontendConfig(
            sample_rate_hz=rate_hz,
            n_fft=n_fft,
            hop_samples=n_fft // 4,
            window_samples=n_fft,
            mel_bands=bands,
            fmin_hz=lowest_hz,
            fmax_hz=share * rate_hz / 2,
        )
        assert_same_bits(mel_filter_bank(config).numpy(), bank_of(config))


def test_the_released_filter_bank_has_torchaudios_bits():
    """The bank of all weights and corpora is equal: 24 kHz, 1024 points, 128 bands from 0 to 12 kHz."""
    assert_same_bits(mel_filter_bank(FrontendConfig()).numpy(), bank_of(FrontendConfig()))


def bank_of(config: FrontendConfig) -> np.ndarray:
    return reference.melscale_fbanks(
        n_freqs=config.n_fft // 2 + 1,
        f_min=config.fmin_hz,
        f_max=config.fmax_hz,
        n_mels=config.mel_bands,
        sample_rate=config.sample_rate_hz,
        norm="slaney",
        mel_scale="slaney",
    ).numpy()
