"""Absolute positions, added to tokens: the alternatives to rotary ones.

- learned: a table with one row per patch of the training crop, trained with its encoder (the teacher's follows the
  student's). It cannot encode a clip longer than a training crop; a shorter clip uses the first rows.
- sincos: sines and cosines with the frequencies 10000^(-i / pairs) of arXiv 1706.03762: of the step and of the band,
  each over half of the width, as in MAE (arXiv 2111.06377); in a sequence of the place. No parameters, any length.

Shapes: B batch, N tokens, D width.
"""

import torch
from torch import Tensor, nn

from pupujepa.errors import UserError
from pupujepa.model.architecture import LEARNED, SINCOS, ModelConfig

POSITION_TABLE = "position_table"
_SLOWEST = 10_000.0


class AbsolutePositions(nn.Module):
    """Position vectors of patches, `width` wide, by index in the grid."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        assert config.position_code in (LEARNED, SINCOS), config.position_code
        self.bands = 1 if config.is_sequence else config.grid_bands
        self.width = width
        self.position_table = (  # drawn by PupuJEPA.init_weights
            nn.Parameter(torch.empty(config.num_patches, width)) if config.position_code == LEARNED else None
        )

    def forward(self, index: Tensor) -> Tensor:
        """Returns the vectors [..., D], float32, of token indices [...]; index = step * bands + band."""
        if self.position_table is not None:
            return self.position_table[index]
        return sincos_positions(index, bands=self.bands, width=self.width)

    def added_to_grid(self, tokens_BND: Tensor) -> Tensor:
        """Returns the tokens [B, N, D] of a whole grid with their positions added.

        Raises:
            UserError: the clip has more patches than the table has rows.
        """
        tokens = tokens_BND.shape[1]
        if self.position_table is not None and tokens > len(self.position_table):
            raise UserError(
                f"a clip of {tokens} patches is longer than the {len(self.position_table)} learned positions of this "
                "model; encode it in windows of a training crop, as pupujepa.Encoder does"
            )
        return tokens_BND + self(torch.arange(tokens, device=tokens_BND.device))


def absolute_positions(config: ModelConfig, width: int) -> AbsolutePositions | None:
    """Returns the positions to add to a stack's input, or None if the config has no absolute ones."""
    return AbsolutePositions(config, width) if config.position_code in (LEARNED, SINCOS) else None


def sincos_positions(index: Tensor, *, bands: int, width: int) -> Tensor:
    """Returns sines and cosines [..., width] of token indices [...]; one band has a time axis only."""
    if bands == 1:
        return _waves(index, width)
    return torch.cat([_waves(index // bands, width // 2), _waves(index % bands, width // 2)], dim=-1)


def _waves(number: Tensor, width: int) -> Tensor:
    pairs = width // 2
    exponents = torch.arange(pairs, dtype=torch.float32, device=number.device) / pairs
    angles = number.unsqueeze(-1) * _SLOWEST**-exponents  # [..., pairs]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
