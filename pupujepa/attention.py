"""Where the predictor looks: its attention from the mask tokens of a region to the rest of the spectrogram.

The maps are computed exactly, as softmax(q k^T / sqrt(d)) from the queries and keys of each block, not approximated
from outside; each row sums to 1 over the predictor's tokens.

Shapes: N predictor tokens (K context, M target), L blocks, H heads, D width.
"""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pupujepa.blocks import Block
from pupujepa.errors import UserError
from pupujepa.masks import RANDOM, Mask, MaskConfig, num_context
from pupujepa.model import PupuJEPA, encoder_rotation, predictor_rotation, visible_to
from pupujepa.patches import steps_of


@dataclass(frozen=True)
class PredictorAttention:
    """Attention of a region's mask tokens, averaged over the region.

    rows: [L, H, N] over the predictor's sequence (context, then targets); each row sums to 1.
    grid: [L, H, steps, bands], the same on the patch grid; NaN where a patch is neither context nor target.
    """

    rows: Tensor
    grid: Tensor


@torch.no_grad()
def predictor_attention(
    model: PupuJEPA, mel_TF: Tensor, mask: Mask, *, region: NDArray | Tensor, which: str = "student"
) -> PredictorAttention:
    """Computes where each head of each predictor block looks from a masked region.

    Args:
        mel_TF: one normalised spectrogram.
        mask: what the encoder sees and the predictor fills in.
        region: boolean [steps, bands], or token indices; all of it must be targets of the mask.
        which: the encoder of the context, the student as in training, or the teacher.

    Raises:
        UserError: the region is empty, or holds patches that are not targets.
    """
    config = model.config
    device = mel_TF.device
    mel_BTF = mel_TF[None]
    steps = steps_of(mel_BTF, config)
    queries = torch.as_tensor(_query_positions(mask, region, steps, config.grid_bands), device=device)
    context_BK = torch.as_tensor(mask.context, device=device)[None]
    sequence_BN = torch.cat([context_BK, torch.as_tensor(mask.target, device=device)[None]], dim=1)
    encoder = model.encoder(which)
    grid_rotation = encoder_rotation(config, steps, device)
    context_BKD = encoder(*visible_to(encoder, model.tokens(mel_BTF), context_BK, grid_rotation))
    x_BND = model.predictor.assemble(context_BKD, sequence_BN)
    rotation = predictor_rotation(config, steps, sequence_BN)
    rows = []
    for module in model.predictor.blocks:
        block = cast(Block, module)
        query, key, _ = block.attn.project(block.norm1(x_BND), rotation)
        rows.append(attention_weights(query[:, :, queries], key)[0].mean(1))  # [H, N]
        x_BND = block(x_BND, rotation)
    rows_LHN = torch.stack(rows)
    grid = rows_LHN.new_full((*rows_LHN.shape[:2], steps * config.grid_bands), torch.nan)
    grid[:, :, sequence_BN[0]] = rows_LHN
    return PredictorAttention(rows_LHN, grid.unflatten(-1, (steps, config.grid_bands)))


def attention_weights(query_BHMD: Tensor, key_BHND: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(D)) in float32: [B, H, M, N]."""
    scores = query_BHMD.float() @ key_BHND.float().transpose(-1, -2) / math.sqrt(key_BHND.shape[-1])
    return scores.softmax(-1)


def attention_map(attention: PredictorAttention) -> Tensor:
    """Returns the mean over blocks and heads [steps, bands]."""
    return attention.grid.mean((0, 1))


def mask_around_region(rng: np.random.Generator, region: NDArray, *, ratio: float = 0.8) -> Mask:
    """Masks a region for certain and the other patches at random, with the share of masked patches used in training.

    Args:
        region: boolean [steps, bands].

    Raises:
        UserError: the region alone exceeds the share that may be masked.
    """
    steps, bands = region.shape
    visible = num_context(MaskConfig(ratio=ratio), steps * bands)
    free = np.flatnonzero(~region.ravel())
    if len(free) < visible:
        raise UserError(
            f"the region holds {int(region.sum())} of {region.size} patches, which leaves fewer than the {visible} "
            f"that stay visible at mask ratio {ratio}; choose a smaller region"
        )
    context = np.sort(rng.choice(free, visible, replace=False, shuffle=False))
    return Mask(context, np.setdiff1d(np.arange(region.size), context), RANDOM)


def _query_positions(mask: Mask, region: NDArray | Tensor, steps: int, bands: int) -> NDArray[np.int64]:
    """Returns where the region's patches stand in the predictor's sequence."""
    region = np.asarray(region)
    if region.dtype == bool:
        if region.shape != (steps, bands):
            raise UserError(f"the region has shape {region.shape}, the spectrogram's grid is {(steps, bands)}")
        region = np.flatnonzero(region)
    if not region.size:
        raise UserError("the region is empty, so there is nothing to look from; choose at least one patch")
    outside = np.setdiff1d(region, mask.target)
    if outside.size:
        raise UserError(
            f"{outside.size} of the region's {region.size} patches are not targets of the mask (first: {outside[0]}), "
            "so the predictor has no query there; mask the whole region"
        )
    return len(mask.context) + np.searchsorted(mask.target, region)
