"""Encoder and predictor against an independent float64 implementation, with random weights: to 1e-5 in float32."""

from dataclasses import replace

import pytest
import torch

from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.model.model import ModelConfig, PupuJEPA, encoder_rotation, predictor_rotation, visible_to
from pupujepa.randomness import generator
from pupujepa.training.masks import MaskConfig, draw_mask
from tests.pupujepa.models import SMALL, random_mel, random_model
from tests.pupujepa.reference_model import ReferenceModel

ROPE_MODES = ("length_exact", "clip_relative")
TINY = ModelConfig()
# other proportions: patches of 80 ms x 32 bands, one block, one head, a predictor wider than the encoder
SQUAT = ModelConfig(
    crop_frames=96,
    patch_frames=8,
    patch_bands=32,
    width=24,
    depth=1,
    heads=1,
    mlp_ratio=2.0,
    predictor_width=40,
    predictor_depth=1,
    predictor_heads=5,
)


def assert_close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Compares values of order 1; the largest of 50,000 rounding errors depends on the CPU: 1.1e-5 with AVX2."""
    assert ours.shape == expected.shape
    assert (ours - expected).square().mean().sqrt() < 5e-6
    torch.testing.assert_close(ours.double(), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("rope", ROPE_MODES)
@pytest.mark.parametrize("frames", [4, 8, 36, 64, 100])
@pytest.mark.parametrize("which", ["teacher", "student"])
def test_encoder_agrees_with_the_reference(rope, frames, which):
    """Every hidden state equals the reference, on grids of 1 to 25 steps and in both rotary modes."""
    config = replace(SMALL, rope=rope)
    model = random_model(config)
    mel = random_mel(1, frames, 128)
    with torch.no_grad():
        ours = model.encode(mel, which=which)
    expected = ReferenceModel(model.state_dict(), config).hidden_states(mel[0], which=which)
    assert len(ours) == len(expected) == config.depth + 1
    for state, reference in zip(ours, expected, strict=True):
        assert_close(state[0], reference)


@pytest.mark.parametrize(("rope", "frames"), [("length_exact", 256), ("clip_relative", 256), ("length_exact", 1024)])
def test_tiny_agrees_with_the_reference(rope, frames):
    """The released Tiny equals the reference, on the training crop's 2,048 tokens and on fewer."""
    config = replace(TINY, rope=rope, predictor_depth=1)  # the predictor is not run here
    model = random_model(config, seed=1)
    mel = random_mel(1, frames, 128, seed=1)
    with torch.no_grad():
        (ours,) = model.encode(mel, layers=[-1])
    assert_close(ours[0], ReferenceModel(model.state_dict(), config).encode(mel[0], which="teacher"))


@pytest.mark.parametrize("rope", ROPE_MODES)
@pytest.mark.parametrize(
    ("config", "frames"),
    [
        (SMALL, 36),
        (SMALL, 64),
        (SMALL, 100),
        (replace(SMALL, mel_bands=64), 64),
        (SQUAT, 96),
        (SQUAT, 40),
        (TINY, 256),
    ],
    ids=["small-36", "small-64", "small-100", "4-bands", "squat-96", "squat-40", "tiny-256"],
)
def test_predictor_agrees_with_the_reference(rope, config, frames):
    """Masked student and predictor equal the reference, with each token at its original position."""
    config = replace(config, rope=rope)
    model = random_model(config, frontend=FrontendConfig(mel_bands=config.mel_bands))
    mel = random_mel(1, frames, config.mel_bands)
    steps = frames // config.patch_frames
    mask = draw_mask(generator(0), MaskConfig(target_fraction=0.6), steps=steps, bands=config.grid_bands, progress=1.0)
    ours = predict(model, mel, torch.from_numpy(mask.context)[None], torch.from_numpy(mask.target)[None])
    expected = ReferenceModel(model.state_dict(), config).predict(mel[0], mask.context, mask.target)
    assert_close(ours, expected)


@torch.no_grad()
def predict(model: PupuJEPA, mel, context, target) -> torch.Tensor:
    """Returns the predictions [M, D] for one clip."""
    steps = mel.shape[1] // model.config.patch_frames
    turn = encoder_rotation(model.config, steps, mel.device)
    seen = model.student(*visible_to(model.student, model.tokens(mel), context, turn))
    sequence = torch.cat([context, target], 1)
    return model.predictor(seen, sequence, predictor_rotation(model.config, steps, sequence))[0]
