"""The features of a window depend on the window only, not on the batch size or the rest of the batch.

Across batch sizes the shapes differ, and a library of matrix products may pick another order of summation: the claim is
equality up to that. For one batch size the shapes are equal, so the claim is equality to the bit.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pupujepa.embedding.encoder import Encoder
from tests.pupujepa.models import random_mel, random_model

DTYPES = (None, torch.bfloat16)
TOLERANCE = {None: 1e-5, torch.bfloat16: 2e-2}
WINDOWS = 7


def encode(mel, *, dtype, batch_size) -> torch.Tensor:
    """Returns the last layer and one in the middle, [2, B, steps, bands * D]."""
    encoder = Encoder(random_model(), autocast_dtype=dtype, batch_size=batch_size)
    return torch.stack(encoder.encode_mel(mel, layers=[1, -1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_batch_size_does_not_matter(dtype):
    """One by one, in threes or all together: the same."""
    mel = random_mel(WINDOWS, 64, 128)
    alone, threes, together = (encode(mel, dtype=dtype, batch_size=size) for size in (1, 3, WINDOWS))
    torch.testing.assert_close(threes, alone, atol=TOLERANCE[dtype], rtol=0)
    torch.testing.assert_close(together, alone, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("other", [0.0, 1e4, float("nan")])
def test_neighbours_in_the_batch_do_not_matter(dtype, other):
    """With silence, ten thousand times the level, or NaN for neighbours, a window's features keep every bit."""
    mel = random_mel(WINDOWS, 64, 128)
    expected = encode(mel, dtype=dtype, batch_size=WINDOWS)
    for kept in (0, 3, WINDOWS - 1):
        changed = mel * other
        changed[kept] = mel[kept]
        assert torch.equal(encode(changed, dtype=dtype, batch_size=WINDOWS)[:, kept], expected[:, kept])


def test_a_leak_would_be_seen(monkeypatch):
    """The test above can fail: attention that looks into the next clip by a thousandth changes bits."""
    attend = functional.scaled_dot_product_attention

    def leaking(query, key, value):
        return attend(query, key, value + 1e-3 * value.roll(1, 0))

    monkeypatch.setattr(functional, "scaled_dot_product_attention", leaking)
    mel = random_mel(WINDOWS, 64, 128)
    changed = torch.cat([mel[:1], torch.zeros_like(mel[1:])])
    first, second = (encode(x, dtype=None, batch_size=WINDOWS)[:, 0] for x in (mel, changed))
    assert (first - second).abs().max() > TOLERANCE[None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("readout", ["frames", "region:8x3"])
def test_a_song_is_the_same_at_any_batch_size(dtype, readout):
    """Blended windows of one clip do not depend on the batch size either, for a full last batch or a single window."""
    audio = np.random.default_rng(0).normal(0, 0.1, 24_000 * 4).astype(np.float32)
    values = [
        Encoder(random_model(), autocast_dtype=dtype, batch_size=size).encode(audio, 24_000, readout=readout).values
        for size in (1, 4, 5, 64)
    ]
    for other in values[1:]:
        np.testing.assert_allclose(other, values[0], atol=TOLERANCE[dtype])
