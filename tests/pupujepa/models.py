"""Small models for the tests."""

import torch

from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.model.model import ModelConfig, PupuJEPA

FRONTEND = FrontendConfig()
SMALL = ModelConfig(
    crop_frames=64, width=32, depth=3, heads=2, predictor_width=16, predictor_depth=2, predictor_heads=2
)


def random_model(config: ModelConfig = SMALL, *, seed: int = 0, frontend: FrontendConfig = FRONTEND) -> PupuJEPA:
    """Returns a model with random parameters, including biases and norms, so that no term of a formula can hide.

    The teacher differs from the student.
    """
    model = PupuJEPA(config, seed=seed, frontend=frontend)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def random_mel(*shape: int, seed: int = 0) -> torch.Tensor:
    """Returns a spectrogram-shaped tensor of standard normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
