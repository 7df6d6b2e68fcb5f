"""MuQ's adapter, on a stand-in with the interface of muq 0.1.0, whose dependencies the tests do without.

The stand-in has what the adapter touches: MuQ.from_pretrained, config.label_rate and config.encoder_depth, and a call
that returns all hidden states. docs/encoders.md says what the adapter was run with besides.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from distributed.marble.encoders import adapters
from distributed.marble.encoders.hidden_states import HowToEncode
from pupujepa.errors import UserError

FP32 = HowToEncode(precision="fp32")
HOP_SAMPLES = 960


class MuQ(nn.Module):
    """Stand-in for muq.MuQ with layers that only scale."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(label_rate=25, encoder_depth=2)
        self.embed = nn.Linear(HOP_SAMPLES, 8)

    @classmethod
    def from_pretrained(cls, source: str) -> "MuQ":
        torch.manual_seed(len(source))
        return cls()

    def forward(self, x: Tensor, *, output_hidden_states: bool) -> SimpleNamespace:
        assert output_hidden_states and not self.training
        first = self.embed(x.unflatten(1, (-1, HOP_SAMPLES)))
        return SimpleNamespace(hidden_states=[first, 2 * first, 3 * first])


def install(monkeypatch: pytest.MonkeyPatch, *, transformers: str) -> None:
    package = ModuleType("muq")
    package.MuQ = MuQ  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "muq", package)
    monkeypatch.setattr(adapters, "version", lambda name: "0.1.0")
    monkeypatch.setattr("distributed.marble.encoders.hidden_states.version", lambda name: transformers)


def test_states_are_what_enters_the_conformer_and_each_layer(monkeypatch: pytest.MonkeyPatch):
    """24 kHz in, 25 frames a second out, one state more than layers."""
    install(monkeypatch, transformers="4.57.6")
    encoder = adapters.open_muq("OpenMuQ/MuQ-large-msd-iter", FP32)
    audio = torch.randn(2, 24_000, generator=torch.Generator().manual_seed(0))
    features = encoder.embed(audio, frame_layers=(0, 2))
    assert features.frames_BMTD is not None
    assert features.frames_BMTD.shape == (2, 2, 25, 8)
    torch.testing.assert_close(features.frames_BMTD[:, 1], 3 * features.frames_BMTD[:, 0])
    torch.testing.assert_close(features.pooled_BLD[:, 0], features.frames_BMTD[:, 0].mean(1))
    assert (encoder.name, encoder.sample_rate_hz, encoder.frame_rate_hz) == ("MuQ-large-msd-iter", 24_000, 25.0)
    assert encoder.layer_names == ("before the transformer", "layer 1", "layer 2")


def test_a_transformers_that_it_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, transformers="5.23.0")
    with pytest.raises(UserError, match=r"transformers 5.23.0 no longer supports.*'transformers>=4.48,<5'"):
        adapters.open_muq("", FP32)


@pytest.mark.parametrize("name", ["muq", "mert", "dasheng"])
def test_a_missing_package_names_the_command(name: str, monkeypatch: pytest.MonkeyPatch):
    package = {"mert": "transformers"}.get(name, name)
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=rf"needs the package {package}, which is not installed.*pip install {package}`"
    ):
        adapters.ADAPTERS[name]("", FP32)
