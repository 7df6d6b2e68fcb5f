"""Transformer blocks with the released key names: pre-norm, fused qkv, rotary positions, SwiGLU.

`Linear` and `PatchConv` do not initialise their memory: `PupuJEPA.init_weights` fills it from its own generator.
Building a model so leaves the global random state alone, and initialises a large model only once.

Shapes: B batch, N tokens, M tokens with requested outputs, D width, H heads, V values of a patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pupujepa.model.architecture import SWIGLU
from pupujepa.model.positions import AbsolutePositions
from pupujepa.model.rope import Rotation, rotate

NORM_EPSILON = 1e-5
ALL_ROWS = slice(None)


class Linear(nn.Linear):
    """A linear map whose memory is not initialised on construction."""

    def reset_parameters(self) -> None:
        """Does nothing; see the module's docstring."""


class PatchConv(nn.Conv2d):
    """A patch convolution, computed as a matrix product; its memory is not initialised on construction.

    Patches do not overlap, so both are the same function. By default a GPU rounds the inputs of a float32 convolution
    to TF32, but not those of a product. On a CPU the product takes a third of the time, forward and backward.
    """

    def reset_parameters(self) -> None:
        """Does nothing; see the module's docstring."""

    def forward(self, values_BNV: Tensor) -> Tensor:
        """Maps the values of patches [B, N, V] to tokens [B, N, D]."""
        return functional.linear(values_BNV, self.weight.flatten(1), self.bias)


class LayerNorm(nn.LayerNorm):
    """LayerNorm that computes and returns float32 under autocast, on every device."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPSILON)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Normalises the last axis: [B, N, D], or any shape that ends in D."""
        return functional.layer_norm(x_BND.float(), self.normalized_shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class BlockShape:
    """Dimensions of all blocks of a stack; `ModelConfig` explains the fields."""

    width: int
    heads: int
    mlp_ratio: float = 4.0
    mlp: str = SWIGLU
    qk_norm: bool = False

    @property
    def hidden(self) -> int:
        """Width of the MLP's hidden layer."""
        hidden = round(self.mlp_ratio * self.width)
        # SwiGLU has three matrices and GELU two: 1.5 times the width gives both the same number of entries
        return hidden if self.mlp == SWIGLU else round(1.5 * hidden)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions, if any."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = Linear(shape.width, 3 * shape.width)
        self.proj = Linear(shape.width, shape.width)
        self.q_norm = LayerNorm(shape.width // shape.heads) if shape.qk_norm else nn.Identity()
        self.k_norm = LayerNorm(shape.width // shape.heads) if shape.qk_norm else nn.Identity()

    def project(self, x_BND: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries and keys, normed and rotated if configured, and values, each [B, H, N, D / H]."""
        # [B, N, 3 D] -> [B, N, 3, H, D / H] -> [3, B, H, N, D / H]
        query, key, value = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        # norms return float32 under autocast, but attention takes one dtype
        return query.to(value.dtype), key.to(value.dtype), value

    def forward(self, x_BND: Tensor, rotation: Rotation | None, rows: slice = ALL_ROWS) -> Tensor:
        """Returns the attention outputs [B, M, D] of tokens `rows`, over all N tokens."""
        query, key, value = self.project(x_BND, rotation)
        # fewer queries, but all keys and values
        mixed_BHMD = functional.scaled_dot_product_attention(query[:, :, rows], key, value)
        return self.proj(mixed_BHMD.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """The gated MLP: silu(first half of fc1's output) * second half, then fc2."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.fc1 = Linear(shape.width, 2 * shape.hidden)
        self.fc2 = Linear(shape.hidden, shape.width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Maps each token separately: [B, N, D]."""
        gate, value = self.fc1(x_BND).chunk(2, dim=-1)
        return self.fc2(functional.silu(gate) * value)


class GeluMLP(nn.Module):
    """The MLP of a ViT: as many matrix entries as SwiGLU, and mlp_ratio D / 2 fewer biases."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.fc1 = Linear(shape.width, shape.hidden)
        self.fc2 = Linear(shape.hidden, shape.width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Maps each token separately: [B, N, D]."""
        return self.fc2(functional.gelu(self.fc1(x_BND)))


class Block(nn.Module):
    """One pre-norm transformer block: 16 D^2 + 17 D parameters at mlp_ratio 4, as released."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.norm1 = LayerNorm(shape.width)
        self.attn = Attention(shape)
        self.norm2 = LayerNorm(shape.width)
        self.mlp = SwiGLU(shape) if shape.mlp == SWIGLU else GeluMLP(shape)

    def forward(self, x_BND: Tensor, rotation: Rotation | None, rows: slice = ALL_ROWS) -> Tensor:
        """Returns the outputs [B, M, D] of tokens `rows`; attention reads all N tokens."""
        x_BMD = x_BND[:, rows] + self.attn(self.norm1(x_BND), rotation, rows)
        return x_BMD + self.mlp(self.norm2(x_BMD))


class Transformer(nn.Module):
    """A stack of blocks and its final norm: the student or the teacher.

    Args:
        positions: absolute positions of its own, which `placed` adds; None with rotary positions or without any.
    """

    def __init__(self, shape: BlockShape, *, depth: int, positions: AbsolutePositions | None = None) -> None:
        super().__init__()
        self.positions = positions
        self.blocks = nn.ModuleList(Block(shape) for _ in range(depth))
        self.norm = LayerNorm(shape.width)
        self.activation_checkpointing = False

    def placed(self, tokens_BND: Tensor) -> Tensor:
        """Returns the first block's input [B, N, D]: tokens of a whole grid, with absolute positions if any."""
        return tokens_BND if self.positions is None else self.positions.added_to_grid(tokens_BND)

    def forward(self, x_BND: Tensor, rotation: Rotation | None) -> Tensor:
        """Returns the normed output of the last block, [B, N, D], float32."""
        return self.norm(run_blocks(self.blocks, x_BND, rotation, recompute=self.activation_checkpointing)[-1])

    def hidden_states(
        self, x_BND: Tensor, rotation: Rotation | None, *, layers: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Returns states [B, N, D] of `layers`: 0 the input, i block i's output, the last normed.

        Only the requested states are held, and no block after the last of them runs.
        """
        depth = len(self.blocks)
        wanted = range(depth + 1) if layers is None else layers
        held = {0: x_BND}
        for layer, block in enumerate(self.blocks[: max(wanted, default=0)], start=1):
            x_BND = block(x_BND, rotation)
            if layer in wanted:
                held[layer] = self.norm(x_BND) if layer == depth else x_BND
        return [held[layer] for layer in wanted]

    def top_outputs(self, x_BND: Tensor, rotation: Rotation | None, *, top: int) -> list[Tensor]:
        """Returns the outputs [B, N, D] of the last `top` blocks, before the final norm."""
        return run_blocks(self.blocks, x_BND, rotation, keep=top)


def run_blocks(
    blocks: nn.ModuleList,
    x_BND: Tensor,
    rotation: Rotation | None,
    *,
    keep: int = 1,
    rows: slice = ALL_ROWS,
    recompute: bool = False,
) -> list[Tensor]:
    """Runs the blocks and returns the last `keep` outputs [B, N, D], holding no others.

    Args:
        rows: the tokens that the last block computes and returns.
        recompute: drop each block's activations and compute them again in the backward pass. This costs about a third
            more time, and of each block only the input is held.
    """
    kept: list[Tensor] = []
    for block in blocks:
        inputs = (x_BND, rotation, rows if block is blocks[-1] else ALL_ROWS)
        if recompute and torch.is_grad_enabled():
            # blocks draw no random numbers, so their state need not be saved
            x_BND = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            x_BND = block(*inputs)
        kept = [*kept[max(0, len(kept) - keep + 1) :], x_BND]  # older outputs are freed
    return kept
