from pathlib import Path

import pytest
import torch

from distributed.marble.encoders import resolve_encoders, supports
from distributed.marble.pupujepa_encoder import HowToEncode
from distributed.marble.readout import spread_layers
from distributed.marble.tasks import TASKS
from pupujepa.encoder import Encoder
from pupujepa.errors import UserError
from pupujepa.frontend import log_mel, normalise
from pupujepa.weights import load

FP32 = HowToEncode(precision="fp32")
ROWS = {t.name: t for t in TASKS}


def audio(frames: int) -> torch.Tensor:
    return 0.1 * torch.randn(2, frames * 240, generator=torch.Generator().manual_seed(0))


def test_features_are_the_teachers_states_crop_by_crop(run_folder: Path):
    """A slice of two crops and a rest gives all layers, each crop encoded by itself, and their time mean."""
    [encoder] = resolve_encoders([str(run_folder)], FP32)
    audio_BS = audio(64 + 64 + 32)
    features = encoder.embed(audio_BS, frame_layers=(0, 2))
    model = load(run_folder / "export")
    mel_BTF = normalise(log_mel(audio_BS), model.config.mel_mean, model.config.mel_std)
    reference = Encoder(model)
    crops = [reference.encode_mel(mel_BTF[:, start:stop]) for start, stop in ((0, 64), (64, 128), (128, 160))]
    states = [torch.cat(layer, dim=1) for layer in zip(*crops, strict=True)]
    assert features.frames_BMTD is not None
    torch.testing.assert_close(features.frames_BMTD[:, 0], states[0])
    torch.testing.assert_close(features.frames_BMTD[:, 1], states[2])
    torch.testing.assert_close(features.pooled_BLD, torch.stack([s.mean(1) for s in states], dim=1))
    assert features.pooled_BLD.shape == (2, 3, 8 * 16)
    assert encoder.frame_rate_hz == 25.0


def test_random_init_is_the_same_network_untrained(run_folder: Path):
    """It shares shape, layers and front end with the run, and only the weights and the digest differ."""
    trained, untrained = resolve_encoders([str(run_folder), "random_init"], FP32)
    assert (trained.name, untrained.name) == ("tiny", "random_init")
    assert trained.layer_names == untrained.layer_names == ("patch embedding", "block 1", "last block, normed")
    assert trained.front_end == untrained.front_end
    assert trained.digest != untrained.digest
    again = resolve_encoders([str(run_folder), "random_init"], FP32)[1]
    audio_BS = audio(64)
    features = [e.embed(audio_BS, frame_layers=()).pooled_BLD for e in (trained, untrained, again)]
    assert torch.equal(features[1], features[2])
    assert not torch.allclose(features[0], features[1])


def test_the_digest_tells_apart_what_changes_features(run_folder: Path):
    """Teacher and student, bf16 and fp32 never share a feature cache."""
    ways = [FP32, HowToEncode(precision="bf16"), HowToEncode(which="student", precision="fp32")]
    encoders = [resolve_encoders([str(run_folder)], how)[0] for how in ways]
    assert len({e.digest for e in encoders}) == 3
    assert encoders[2].name == "tiny:student"


def test_bf16_features_stay_close(run_folder: Path):
    """Autocast changes features by its rounding, no more."""
    exact, rounded = (
        resolve_encoders([str(run_folder)], HowToEncode(precision=p))[0].embed(audio(64), frame_layers=()).pooled_BLD
        for p in ("fp32", "bf16")
    )
    assert rounded.dtype == torch.float32
    assert ((exact - rounded).norm() / exact.norm()) < 0.02


def test_each_encoder_states_what_it_can_be_asked(run_folder: Path):
    """Chroma is for key alone; everything else has frames."""
    encoders = resolve_encoders([str(run_folder), "random_init", "log_mel", "chroma"], FP32)
    able = {e.name: [name for name, task in ROWS.items() if supports(e, task)] for e in encoders}
    assert able["chroma"] == ["key"]
    assert able["tiny"] == able["random_init"] == able["log_mel"] == list(ROWS)


def test_a_folder_without_weights_names_the_remedy(tmp_path: Path):
    with pytest.raises(UserError, match=r"no model.safetensors in .*python -m distributed export"):
        resolve_encoders([str(tmp_path)], FP32)


def test_random_init_needs_something_to_copy():
    with pytest.raises(UserError, match=r"none is given.*--encoders"):
        resolve_encoders(["random_init", "log_mel"], FP32)


def test_two_encoders_of_one_name_are_refused(run_folder: Path):
    with pytest.raises(UserError, match="two encoders are called 'log_mel'"):
        resolve_encoders(["log_mel", str(run_folder), "log_mel"], FP32)


def test_layers_for_frames_are_spread_over_the_network():
    assert spread_layers(5, 3) == (0, 2, 4)
    assert spread_layers(25, 3) == (0, 12, 24)
    assert spread_layers(2, 3) == (0, 1)
    assert spread_layers(9, 1) == (8,)
