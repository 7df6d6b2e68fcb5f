from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from pupujepa.model.patches import patch_values
from tests.pupujepa.models import SMALL, random_mel, random_model


@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, structure="frames", patch_bands=0), replace(SMALL, patch_frames=8, patch_bands=32)],
    ids=["2d", "frames", "large"],
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_product_is_the_stored_convolution(dtype):
    """Tokens are those of torch's convolution with the same weights, which is how released files hold them."""
    embed = random_model(SMALL).patch_embed.to(dtype)
    mel = random_mel(2, 64, 128).to(dtype)
    grid = functional.conv2d(mel.unsqueeze(1), embed.proj.weight, embed.proj.bias, stride=embed.proj.stride)
    raw = embed.proj(patch_values(mel, SMALL))
    torch.testing.assert_close(raw, grid.flatten(2).transpose(1, 2))
