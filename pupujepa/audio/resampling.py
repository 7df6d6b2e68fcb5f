"""Band-limited resampling by a ratio of integers: one windowed sinc filter per output phase.

A period of `old` input samples has `new` output samples. Output j is the input at time j / new of a period:

    y[j] = sum over i of x[i] h(i / old - j / new)
    h(t) = c / old * sinc(c t) * cos^2(pi c t / (2 Z)),   0 where |c t| >= Z

with sinc(u) = sin(pi u) / (pi u), Z = 6 zero crossings to either side and c = 0.99 min(old, new), the cutoff. Source:
J. O. Smith, "Digital Audio Resampling Home Page" (CCRMA, 2002), with a Hann window. Output j + new has the taps of
output j, `old` samples later, so one strided convolution with `new` filters computes all outputs.

Constants and order of the floating-point operations are the defaults of `torchaudio.functional.resample`, so corpora
and features keep their digests. The number of samples is exact here; torchaudio rounds it to a float32, which is wrong
beyond 2^24 samples (11.7 minutes at 24 kHz).

Shapes: S samples of audio, P phases (`new` of them), W taps of a filter.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

ZERO_CROSSINGS = 6
# pass band as a share of the lower rate's band; the filter falls within the rest, which avoids aliasing
_ROLLOFF = 0.99
# Cached filters take 16 * 4 MiB at most. Those of common rates need 1.2 MB or less; the largest of all, 64 MB.
_KEPT_FILTERS = 16
_LARGEST_KEPT_BYTES = 4 * 2**20


def resample_by_ratio(audio_S: Tensor, old: int, new: int) -> Tensor:
    """Resamples audio [..., S] so that `old` samples become `new`.

    Args:
        audio_S: floating point, on the CPU, with silence before and after.
        old, new: positive, in lowest terms.

    Returns:
        [..., resampled_samples(S, old, new)], of the same type; the audio itself for a ratio of 1.
    """
    if old == new:
        return audio_S
    samples = audio_S.shape[-1]
    filters_PW = _filters(old, new, audio_S.dtype)
    reach = _reach(old, new)
    # one period more than the filter's reach, for a last, partial period
    padded = torch.nn.functional.pad(audio_S.reshape(-1, samples), (reach, reach + old))
    phases = torch.nn.functional.conv1d(padded[:, None], filters_PW[:, None], stride=old)  # [batch, P, periods]
    resampled = phases.transpose(1, 2).flatten(1)[:, : resampled_samples(samples, old, new)]
    return resampled.reshape(*audio_S.shape[:-1], -1)


def resampled_samples(samples: int, old: int, new: int) -> int:
    """Returns the number of output samples: samples * new / old, rounded up."""
    return -(-samples * new // old)


def _reach(old: int, new: int) -> int:
    """Returns the reach of the filter in input samples, to either side of an output sample."""
    return math.ceil(ZERO_CROSSINGS * old / _cutoff(old, new))


def _cutoff(old: int, new: int) -> float:
    return min(old, new) * _ROLLOFF


def _filters(old: int, new: int, dtype: torch.dtype) -> Tensor:
    """Returns the filters [P, W], W = 2 * reach + old, read-only; small ones are cached."""
    size = new * (2 * _reach(old, new) + old) * dtype.itemsize
    return (_kept_filters if size <= _LARGEST_KEPT_BYTES else _design_filters)(old, new, dtype)


def _design_filters(old: int, new: int, dtype: torch.dtype) -> Tensor:
    """Computes h at the taps of every phase, in the dtype of the audio.

    In float32, ratios of hundreds to hundreds are off by up to 1e-4 of the formula, as in all corpora so far.
    """
    cutoff, reach = _cutoff(old, new), _reach(old, new)
    # a cached inference tensor would break a later training step; in place, because large filters are memory-bound
    with torch.inference_mode(False):
        tap_W = torch.arange(-reach, reach + old, dtype=dtype, device="cpu") / old
        phase_P = torch.arange(new, dtype=dtype, device="cpu") / new
        # c t, in zero crossings, clamped to the edge of the window, where the window is 0
        crossing_PW = (tap_W - phase_P[:, None]).mul_(cutoff).clamp_(-ZERO_CROSSINGS, ZERO_CROSSINGS)
        window_PW = (crossing_PW * math.pi).div_(2 * ZERO_CROSSINGS).cos_().square_()
        angle_PW = crossing_PW.mul_(math.pi)
        sinc_PW = angle_PW.sin().div_(angle_PW).masked_fill_(angle_PW == 0, 1)
        return sinc_PW.mul_(window_PW.mul_(cutoff / old))


_kept_filters = lru_cache(maxsize=_KEPT_FILTERS)(_design_filters)
