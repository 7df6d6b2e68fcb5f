"""MusicFM's adapter, on a checkout that holds a stand-in with the interface of its code: it is no package.

The stand-in has what the adapter touches: the file's place, MusicFM25Hz(stat_path=, model_path=), hop_length,
conformer.layers and get_predictions; and it imports another of its modules below the clone's name, as the real one.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distributed.marble.encoders.adapters import open_musicfm
from distributed.marble.encoders.hidden_states import HowToEncode
from pupujepa.errors import UserError

FP32 = HowToEncode(precision="fp32")
MODEL = """
import json
from pathlib import Path
from types import SimpleNamespace
import torch
from torch import nn
from musicfm.modules.conv import HOP

class MusicFM25Hz(nn.Module):
    def __init__(self, *, stat_path, model_path):
        super().__init__()
        assert model_path is None
        self.mean, self.hop_length = json.loads(Path(stat_path).read_text())["mean"], 240
        self.embed = nn.Linear(HOP, 8)
        self.conformer = SimpleNamespace(layers=[None, None])

    def get_predictions(self, x):
        first = self.embed(x.unflatten(1, (-1, HOP)) - self.mean)
        return {}, (first, 2 * first, 3 * first)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("distributed.marble.encoders.hidden_states.version", lambda name: "4.57.6")
    folder = tmp_path / "musicfm"
    for inside in ("model", "modules", "data"):
        (folder / inside).mkdir(parents=True)
    (folder / "model" / "musicfm_25hz.py").write_text(MODEL)
    (folder / "modules" / "conv.py").write_text("HOP = 960\n")
    (folder / "data" / "msd_stats.json").write_text('{"mean": 0.5}')
    weights = {"model.embed.weight": torch.ones(8, 960), "model.embed.bias": torch.zeros(8)}
    torch.save({"state_dict": weights}, folder / "data" / "pretrained_msd.pt")
    yield folder
    for name in [n for n in sys.modules if n.split(".")[0] == "musicfm"]:
        del sys.modules[name]


def test_states_are_what_enters_the_conformer_and_each_layer(checkout: Path):
    """24 kHz in, 25 frames a second out; weights and statistics are those of data/."""
    path = list(sys.path)
    encoder = open_musicfm(str(checkout), FP32)
    assert sys.path == path
    audio = torch.randn(2, 24_000, generator=torch.Generator().manual_seed(0))
    features = encoder.embed(audio, frame_layers=(0, 2))
    assert features.frames_BMTD is not None
    expected = (audio.unflatten(1, (-1, 960)) - 0.5).sum(-1)
    torch.testing.assert_close(features.frames_BMTD[:, 0, :, 0], expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(features.frames_BMTD[:, 1], 3 * features.frames_BMTD[:, 0])
    assert (encoder.name, encoder.sample_rate_hz, encoder.frame_rate_hz) == ("musicfm-msd", 24_000, 25.0)
    assert encoder.layer_names == ("before the transformer", "layer 1", "layer 2")
    before = encoder.digest
    (checkout / "data" / "msd_stats.json").write_text('{"mean": 0.25}')
    assert open_musicfm(str(checkout), FP32).digest != before


def test_a_checkout_that_lacks_files_says_which(checkout: Path):
    (checkout / "data" / "pretrained_msd.pt").unlink()
    with pytest.raises(UserError, match=r"clone of github.com/minzwon/musicfm.*missing: data/pretrained_msd.pt"):
        open_musicfm(str(checkout), FP32)


def test_a_checkout_of_another_name_is_refused(checkout: Path):
    """A clone of another name is refused: its modules import each other by that name."""
    with pytest.raises(UserError, match="missing: nothing, but it has another name"):
        open_musicfm(str(checkout.rename(checkout.parent / "MusicFM-main")), FP32)
