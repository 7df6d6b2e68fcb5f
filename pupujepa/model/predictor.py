"""The predictor: from the student's outputs at context positions to the targets at masked positions.

Shapes: B batch, N predictor tokens (K context, then M target), D width, P predictor width, V outputs per token.
"""

import torch
from torch import Tensor, nn

from pupujepa.model.architecture import ModelConfig
from pupujepa.model.blocks import Block, BlockShape, LayerNorm, Linear, run_blocks
from pupujepa.model.positions import absolute_positions
from pupujepa.model.rope import Rotation


class Predictor(nn.Module):
    """Predicts the teacher's output (V = D), or the patch itself, at target positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.predictor_width
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = absolute_positions(config, width)
        self.proj_in = Linear(config.width, width)
        self.blocks = nn.ModuleList(Block(predictor_shape(config)) for _ in range(config.predictor_depth))
        self.norm = LayerNorm(width)
        self.proj_out = Linear(width, config.predictor_outputs)
        self.activation_checkpointing = False

    def forward(self, context_BKD: Tensor, sequence_BN: Tensor, rotation: Rotation | None) -> Tensor:
        """Returns predictions [B, M, V].

        Args:
            sequence_BN: token indices of the context, then of the targets.
            rotation: of that sequence; each tensor is [B, 1, N, R].
        """
        x_BNP = self.assemble(context_BKD, sequence_BN)
        targets = slice(context_BKD.shape[1], None)  # the last block's outputs at context positions are not needed
        x_BMP = run_blocks(self.blocks, x_BNP, rotation, rows=targets, recompute=self.activation_checkpointing)[-1]
        return self.proj_out(self.norm(x_BMP))

    def assemble(self, context_BKD: Tensor, sequence_BN: Tensor) -> Tensor:
        """Returns the input [B, N, P]: projected context tokens, then mask tokens, with positions."""
        context_BKP = self.proj_in(context_BKD)
        targets = sequence_BN.shape[1] - context_BKP.shape[1]
        # in the dtype of autocast: cat would promote the context to float32
        mask_BMP = self.mask_token.to(context_BKP.dtype).expand(len(context_BKP), targets, -1)
        x_BNP = torch.cat([context_BKP, mask_BMP], dim=1)
        return x_BNP if self.positions is None else x_BNP + self.positions(sequence_BN)


def predictor_shape(config: ModelConfig) -> BlockShape:
    """Returns the block dimensions of the predictor."""
    return BlockShape(config.predictor_width, config.predictor_heads, config.mlp_ratio, config.mlp, config.qk_norm)
