"""Patches of a spectrogram: as tokens, and as the target values of a masked autoencoder.

Shapes: B batch, T frames, F mel bands, N patches, D width, V values of a patch (patch_frames * patch_bands).
"""

from torch import Tensor, nn

from pupujepa.errors import UserError
from pupujepa.model.architecture import ModelConfig
from pupujepa.model.blocks import LayerNorm, PatchConv


class PatchEmbed(nn.Module):
    """Cuts a spectrogram into patches and maps each to a token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        patch = (config.patch_frames, config.patch_bands)
        self.proj = PatchConv(1, config.width, kernel_size=patch, stride=patch)
        self.norm = LayerNorm(config.width)

    def forward(self, mel_BTF: Tensor) -> Tensor:
        """Returns tokens [B, N, D] in time-major order."""
        return self.norm(self.proj(patch_values(mel_BTF, self.config)))


def patch_values(mel_BTF: Tensor, config: ModelConfig) -> Tensor:
    """Returns the values of each patch [B, N, V], frame by frame, in the order of the tokens."""
    tiles = mel_BTF.unflatten(2, (config.grid_bands, config.patch_bands)).unflatten(1, (-1, config.patch_frames))
    # [B, steps, frames, bands, mel] -> [B, steps, bands, frames * mel] -> [B, N, V]
    return tiles.transpose(2, 3).flatten(3).flatten(1, 2)


def check_mel(mel_BTF: Tensor, config: ModelConfig) -> None:
    """Raises UserError unless a spectrogram is [B, T, mel_bands], T a multiple of patch_frames."""
    shape = tuple(mel_BTF.shape)
    if len(shape) != 3 or shape[2] != config.mel_bands or shape[1] < 1 or shape[1] % config.patch_frames:
        raise UserError(
            f"spectrogram of shape {shape} does not fit the model; give [batch, frames, {config.mel_bands}] with "
            f"frames a multiple of {config.patch_frames}"
        )


def steps_of(mel_BTF: Tensor, config: ModelConfig) -> int:
    """Returns the number of time steps of a spectrogram's [B, T, F] patch grid."""
    return mel_BTF.shape[1] // config.patch_frames
