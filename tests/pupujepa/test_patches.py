from dataclasses import replace

import pytest
import torch

from pupujepa.patches import patch_values
from tests.pupujepa.models import SMALL, random_mel, random_model


@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, structure="1d", patch_bands=0), replace(SMALL, patch_frames=8, patch_bands=32)],
    ids=["2d", "1d", "large"],
)
def test_patch_values_are_those_of_the_tokens(config):
    """Token t * bands + f holds the patch at step t and band f, and the embedding is a linear map of its values."""
    mel = random_mel(2, 64, 128)
    values = patch_values(mel, config)
    frames, width = config.patch_frames, config.patch_bands
    for token in (0, 1, config.num_patches - 1):
        step, band = divmod(token, config.grid_bands)
        patch = mel[1, step * frames : (step + 1) * frames, band * width : (band + 1) * width]
        assert torch.equal(values[1, token], patch.flatten())
    embed = random_model(config).patch_embed
    raw = values @ embed.proj.weight.flatten(1).T + embed.proj.bias
    torch.testing.assert_close(embed.norm(raw), embed(mel), atol=1e-5, rtol=1e-5)
