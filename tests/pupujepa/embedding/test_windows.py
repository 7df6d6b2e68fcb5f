import numpy as np
import pytest
import torch

from pupujepa.embedding.windows import CrossFade, window_starts
from tests.pupujepa.models import random_mel


@pytest.mark.parametrize("steps", [16, 17, 24, 31, 32, 33, 100])
def test_windows_reach_every_step(steps):
    """Windows start in order, overlap by at least half, stay inside and end with the clip."""
    starts = window_starts(steps, 16)
    assert starts[0] == 0
    assert starts[-1] == steps - 16
    gaps = np.diff(starts)
    assert ((gaps > 0) & (gaps <= 8)).all()


@pytest.mark.parametrize("steps", [16, 17, 30, 100])
def test_cross_fade_keeps_what_windows_agree_on(steps):
    """Windows cut from one sequence blend back to that sequence, each step given out once and in order."""
    sequence = random_mel(2, steps, 3, 4)
    starts = window_starts(steps, 16)
    fade = CrossFade(starts, 16)
    blended = torch.cat([fade.add(sequence[:, s : s + 16]) for s in starts], dim=1)
    torch.testing.assert_close(blended, sequence)
