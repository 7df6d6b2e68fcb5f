"""Dasheng's adapter on a small model of its own package."""

from pathlib import Path

import pytest
import torch
from dasheng.pretrained.pretrained import Dasheng

from distributed.marble.encoders.adapters import DASHENG_RATE_HZ, open_dasheng
from distributed.marble.encoders.hidden_states import HowToEncode
from pupujepa.errors import UserError

FP32 = HowToEncode(precision="fp32")
SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2}


def test_its_last_layer_comes_in_frames_of_40_ms(tmp_path: Path):
    """Audio at 16 kHz gives 25 frames a second of one layer, even beyond the training length of 10 s."""
    torch.manual_seed(0)
    model = Dasheng(**SMALL).eval()
    torch.save({"model": model.state_dict(), "config": SMALL}, tmp_path / "small.pt")
    encoder = open_dasheng(str(tmp_path / "small.pt"), FP32)
    audio = 0.1 * torch.randn(2, 12 * DASHENG_RATE_HZ, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(audio)
    features = encoder.embed(audio, frame_layers=(0,))
    assert features.frames_BMTD is not None
    torch.testing.assert_close(features.frames_BMTD[:, 0], expected)
    torch.testing.assert_close(features.pooled_BLD[:, 0], expected.mean(1))
    assert features.frames_BMTD.shape == (2, 1, 300, 16)
    assert (encoder.name, encoder.sample_rate_hz, encoder.frame_rate_hz) == ("small", 16_000, 25.0)
    assert encoder.layer_names == ("last layer, normed",)
    assert encoder.digest == open_dasheng(str(tmp_path / "small.pt"), FP32).digest


def test_what_is_neither_a_size_nor_a_file_is_refused():
    with pytest.raises(UserError, match="dasheng:giant is neither a file nor one of the sizes base, 06B, 12B"):
        open_dasheng("giant", FP32)
