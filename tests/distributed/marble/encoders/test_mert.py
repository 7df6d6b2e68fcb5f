"""MERT's adapter on small HuBERTs in MERT's published format: its config and older names of weight norm."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from distributed.marble.encoders.adapters import MERT_RATE_HZ, normalised, open_mert
from distributed.marble.encoders.hidden_states import HowToEncode
from pupujepa.errors import UserError

FP32 = HowToEncode(precision="fp32")
RENAMED = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def audio(seconds: float) -> torch.Tensor:
    return 0.1 * torch.randn(2, int(seconds * MERT_RATE_HZ), generator=torch.Generator().manual_seed(0)) + 0.05


def publish(folder: Path, *, stable: bool = False, without: str = "", **options: object) -> HubertModel:
    """Writes a small model in the format of MERT's repositories, and returns it."""
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        do_stable_layer_norm=stable,
        feat_extract_norm="layer" if stable else "group",
    )
    model = HubertModel(config).eval()
    weights = model.state_dict()
    for new, old in RENAMED.items():
        weights = {name.replace(new, old): tensor for name, tensor in weights.items() if name != without}
    folder.mkdir()
    torch.save(weights, folder / "pytorch_model.bin")
    described = config.to_dict() | {"model_type": "mert_model", "architectures": ["MERTModel"]} | options
    described.pop("conv_pos_batch_norm")
    (folder / "config.json").write_text(json.dumps(described))
    return model


@pytest.mark.parametrize("stable", [False, True], ids=["95M's order of norms", "330M's order of norms"])
def test_states_are_what_enters_the_transformer_and_each_layer(tmp_path: Path, stable: bool):
    """There is one state more than layers, at 75 Hz (749 frames in ten seconds); the last is the output."""
    model = publish(tmp_path / "MERT-v1-small", stable=stable)
    encoder = open_mert(str(tmp_path / "MERT-v1-small"), FP32)
    entering: list[torch.Tensor] = []
    for layer in model.encoder.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    with torch.no_grad():
        last = model(normalised(audio(1))).last_hidden_state
    features = encoder.embed(audio(1), frame_layers=(0, 1, 2, 3))
    assert features.frames_BMTD is not None
    torch.testing.assert_close(features.frames_BMTD, torch.stack([*entering, last], dim=1))
    torch.testing.assert_close(features.pooled_BLD, torch.stack([*entering, last], dim=1).mean(2))
    assert (encoder.name, encoder.sample_rate_hz, encoder.frame_rate_hz) == ("MERT-v1-small", 24_000, 75.0)
    assert encoder.layer_names == ("before the transformer", "layer 1", "layer 2", "layer 3")
    ten = encoder.embed(audio(10)[:1], frame_layers=(0,)).frames_BMTD
    assert ten is not None and ten.shape[2] == 749


def test_input_is_normalised_as_its_feature_extractor_does():
    """A slice gets zero mean and unit variance, its zero padding included."""
    slices = audio(1)
    slices[:, MERT_RATE_HZ // 2 :] = 0
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=MERT_RATE_HZ, do_normalize=True)
    theirs = extractor([s.numpy() for s in slices], sampling_rate=MERT_RATE_HZ, return_tensors="np")["input_values"]
    np.testing.assert_allclose(normalised(slices).numpy(), theirs, atol=1e-5)


def test_weights_tell_digests_apart(tmp_path: Path):
    """The digest depends on the weights and the precision."""
    publish(tmp_path / "a")
    publish(tmp_path / "b")
    publish(tmp_path / "c", stable=True)
    digests = [open_mert(str(tmp_path / name), FP32).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    assert open_mert(str(tmp_path / "a"), HowToEncode(precision="bf16")).digest != digests[0]


def test_what_hubert_cannot_run_is_refused(tmp_path: Path):
    """A constant-Q branch, a missing weight and a missing folder are refused."""
    publish(tmp_path / "cqt", feature_extractor_cqt=True)
    with pytest.raises(UserError, match=r"is not HuBERT with MERT's weights .*feature_extractor_cqt"):
        open_mert(str(tmp_path / "cqt"), FP32)
    publish(tmp_path / "less", without="encoder.layer_norm.weight")
    with pytest.raises(UserError, match=r"encoder.layer_norm.weight.*features would be wrong"):
        open_mert(str(tmp_path / "less"), FP32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        open_mert(str(tmp_path / "empty"), FP32)
