"""Band-limited resampling by a ratio of integers: a windowed sinc filter, one set of taps per output phase.

In a period of `old` input samples lie `new` output samples. Output j is the input, read at time j / new of a period:

    y[j] = sum over i of x[i] h(i / old - j / new)
    h(t) = c / old * sinc(c t) * cos^2(pi c t / (2 Z)),   0 where |c t| >= Z

with sinc(u) = sin(pi u) / (pi u), Z = 6 zero crossings to either side and c = 0.99 min(old, new), the cutoff. Source:
J. O. Smith, "Digital Audio Resampling Home Page" (CCRMA, 2002), with a Hann window. Output j + new has the taps of
output j, `old` samples later: one strided convolution with `new` filters computes them all.

The constants, and the order in which the floating-point operations come, are the defaults of
`torchaudio.functional.resample`: corpora and features keep their digests. The number of samples is exact here; there, a
float32 rounds it beyond 2^24 samples (11.7 minutes at 24 kHz).

Shapes: S samples of audio, P phases (`new` of them), W taps of a filter.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

ZERO_CROSSINGS = 6
# share of the lower rate's band that passes: the filter falls within the rest, before it could alias
_ROLLOFF = 0.99
# Kept filters take 16 * 4 MiB at most. Those of rates in use need 1.2 MB or less; the largest of all, 64 MB.
_KEPT_FILTERS = 16
_LARGEST_KEPT_BYTES = 4 * 2**20


def resample_by_ratio(audio_S: Tensor, old: int, new: int) -> Tensor:
    """Resamples audio [..., S] so that `old` samples become `new`.

    Args:
        audio_S: floating point, on the CPU; silence is assumed before and after it.
        old, new: positive, in lowest terms.

    Returns:
        [..., resampled_samples(S, old, new)], of the same type; the audio itself for a ratio of 1.
    """
    if old == new:
        return audio_S
    samples = audio_S.shape[-1]
    filters_PW = _filters(old, new, audio_S.dtype)
    reach = _reach(old, new)
    # one period more than the filter reaches, so that a last, partial period is computed too
    padded = torch.nn.functional.pad(audio_S.reshape(-1, samples), (reach, reach + old))
    phases = torch.nn.functional.conv1d(padded[:, None], filters_PW[:, None], stride=old)  # [batch, P, periods]
    resampled = phases.transpose(1, 2).flatten(1)[:, : resampled_samples(samples, old, new)]
    return resampled.reshape(*audio_S.shape[:-1], -1)


def resampled_samples(samples: int, old: int, new: int) -> int:
    """Returns the samples that `resample_by_ratio` makes of `samples`: samples * new / old, rounded up."""
    return -(-samples * new // old)


def _reach(old: int, new: int) -> int:
    """Returns the input samples on either side of an output sample that its filter looks at."""
    return math.ceil(ZERO_CROSSINGS * old / _cutoff(old, new))


def _cutoff(old: int, new: int) -> float:
    return min(old, new) * _ROLLOFF


def _filters(old: int, new: int, dtype: torch.dtype) -> Tensor:
    """Returns the filters [P, W], W = 2 * reach + old, kept for the next call unless they are large; read-only."""
    size = new * (2 * _reach(old, new) + old) * dtype.itemsize
    return (_kept_filters if size <= _LARGEST_KEPT_BYTES else _design_filters)(old, new, dtype)


def _design_filters(old: int, new: int, dtype: torch.dtype) -> Tensor:
    """Computes h at the taps of every phase, in the type of the audio.

    In float32, what ratios of hundreds to hundreds give is off by up to 1e-4 of the formula, as in all corpora so far.
    """
    cutoff, reach = _cutoff(old, new), _reach(old, new)
    # a kept inference tensor would break a later training step; in place, because large ones are bound by memory
    with torch.inference_mode(False):
        tap_W = torch.arange(-reach, reach + old, dtype=dtype, device="cpu") / old
        phase_P = torch.arange(new, dtype=dtype, device="cpu") / new
        # c t, in zero crossings; beyond the window it is held at its edge, where the window is 0
        crossing_PW = (tap_W - phase_P[:, None]).mul_(cutoff).clamp_(-ZERO_CROSSINGS, ZERO_CROSSINGS)
        window_PW = (crossing_PW * math.pi).div_(2 * ZERO_CROSSINGS).cos_().square_()
        angle_PW = crossing_PW.mul_(math.pi)
        sinc_PW = angle_PW.sin().div_(angle_PW).masked_fill_(angle_PW == 0, 1)
        return sinc_PW.mul_(window_PW.mul_(cutoff / old))


_kept_filters = lru_cache(maxsize=_KEPT_FILTERS)(_design_filters)
