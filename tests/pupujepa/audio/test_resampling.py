"""The resampler by its own properties; test_torchaudio_bits.py compares it with torchaudio."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pupujepa.audio import resampling
from pupujepa.audio.resampling import ZERO_CROSSINGS, resample_by_ratio, resampled_samples

# old and new of 44.1, 48, 16, 8 and 192 kHz to 24 kHz, and of two that grow
RATIOS = [(147, 80), (2, 1), (2, 3), (1, 3), (8, 1), (80, 147), (441, 640)]
ratios = st.tuples(st.integers(1, 60), st.integers(1, 60)).filter(
    lambda terms: math.gcd(*terms) == 1 and terms != (1, 1)
)


@pytest.fixture
def no_filters_kept():
    resampling._kept_filters.cache_clear()
    yield
    resampling._kept_filters.cache_clear()


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_the_formula(audio_S: np.ndarray, old: int, new: int) -> np.ndarray:
    """Evaluates the formula of the module's docstring per output, in float64."""
    cutoff = 0.99 * min(old, new)
    made = []
    for j in range(math.ceil(len(audio_S) * new / old)):
        u = cutoff * (np.arange(len(audio_S)) / old - j / new)
        taps = cutoff / old * np.sinc(u) * np.cos(np.pi * u / (2 * ZERO_CROSSINGS)) ** 2
        made.append(audio_S @ np.where(np.abs(u) < ZERO_CROSSINGS, taps, 0))
    return np.array(made)


@pytest.mark.parametrize(("old", "new"), RATIOS)
def test_it_computes_the_formula_of_its_docstring(old, new):
    """Sample for sample, the ends included, to the rounding of each precision."""
    audio_S = noise(300, dtype=torch.float64)
    expected = by_the_formula(audio_S.numpy(), old, new)
    np.testing.assert_allclose(resample_by_ratio(audio_S, old, new).numpy(), expected, atol=1e-12)
    single = resample_by_ratio(audio_S.float(), old, new)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, atol=1e-4)


@given(ratios, st.integers(1, 500))
def test_the_length_is_rounded_up(ratio, samples):
    """S samples give ceil(S * new / old) for any ratio."""
    old, new = ratio
    expected = math.ceil(samples * new / old)
    assert resample_by_ratio(torch.ones(samples), old, new).shape == (expected,)
    assert resampled_samples(samples, old, new) == expected


@pytest.mark.parametrize(("old", "new"), RATIOS)
def test_a_constant_stays_constant_away_from_the_ends(old, new):
    """The taps of every phase add up to 1 but for the ripple of a filter of this length."""
    resampled = resample_by_ratio(torch.ones(40 * old), old, new)
    edge = math.ceil(ZERO_CROSSINGS / 0.99 * max(new / old, 1)) + 1
    torch.testing.assert_close(resampled[edge:-edge], torch.ones(len(resampled) - 2 * edge), atol=1.5e-3, rtol=0)


@given(ratios, st.floats(-3, 3), st.floats(-3, 3))
def test_it_is_linear(ratio, a, b):
    """Resampling is linear: the sum of two signals becomes the sum of their outputs."""
    x, y = noise(400, seed=1, dtype=torch.float64), noise(400, seed=2, dtype=torch.float64)
    apart = a * resample_by_ratio(x, *ratio) + b * resample_by_ratio(y, *ratio)
    torch.testing.assert_close(resample_by_ratio(a * x + b * y, *ratio), apart, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("old", "new"), RATIOS)
def test_a_period_later_in_is_a_period_later_out(old, new):
    """A delay of `old` samples delays the output by `new`."""
    audio_S = noise(5 * old + 700)
    later = resample_by_ratio(torch.nn.functional.pad(audio_S, (old, 0)), old, new)
    now = resample_by_ratio(audio_S, old, new)
    # before its first sample the later one still hears what the filter foresees
    torch.testing.assert_close(later[new:], now[: len(later) - new], atol=1e-6, rtol=0)


def test_a_ratio_of_one_changes_nothing():
    """Rates whose ratio rounds to 1 use no filter, which would remove the highest frequencies."""
    audio_S = noise(100)
    assert resample_by_ratio(audio_S, 1, 1) is audio_S


def test_a_batch_is_its_rows():
    """Leading axes are kept, and each row is resampled separately."""
    audio = noise(2, 3, 1000)
    resampled = resample_by_ratio(audio, 147, 80)
    assert resampled.shape == (2, 3, 545)
    for row, expected in zip(resampled.flatten(0, 1), audio.flatten(0, 1), strict=True):
        torch.testing.assert_close(row, resample_by_ratio(expected, 147, 80), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("no_filters_kept")
def test_filters_are_kept_within_a_bound():
    """A second call reuses its filters; those of an odd ratio, of megabytes, are not cached."""
    first, second = (resample_by_ratio(noise(1000), 147, 80) for _ in range(2))
    assert torch.equal(first, second)
    assert resampling._kept_filters.cache_info()[:2] == (1, 1)  # hits, misses
    resample_by_ratio(noise(1000), 1999, 2000)
    assert resampling._kept_filters.cache_info().currsize == 1
    for old in range(1, 40):
        resample_by_ratio(noise(100), old, 41)
    assert resampling._kept_filters.cache_info().currsize == 16


@pytest.mark.usefixtures("no_filters_kept")
def test_filters_kept_from_inference_serve_training():
    """A first call under inference_mode leaves filters that gradients can pass."""
    with torch.inference_mode():
        resample_by_ratio(noise(1000), 147, 80)
    audio_S = noise(1000).requires_grad_()
    resample_by_ratio(audio_S, 147, 80).sum().backward()
    assert resampling._kept_filters.cache_info().hits == 1
    assert audio_S.grad is not None and audio_S.grad.abs().max() > 0.5
