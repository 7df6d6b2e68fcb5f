"""Attention maps of the predictor, from the mask tokens of a region to the rest of the spectrogram.

Maps are exact: softmax(q k^T / sqrt(d)) of each block's queries and keys, so rows sum to 1 over the predictor's tokens.

As in training, the encoder sees a fifth of the patches, so one pass shows attention to that fifth only; the others are
mask tokens, which hold only a position. So `region_attention` splits the patches outside the region into disjoint
contexts and combines their maps: every patch is seen as content.

Shapes: B batch, N predictor tokens (K context, M target), L blocks, H heads, D width of a head; T frames, F mel bands
of a spectrogram, and T steps, F bands of patches of a map.
"""

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pupujepa.errors import UserError
from pupujepa.model.blocks import Block
from pupujepa.model.model import PupuJEPA, encoder_rotation, predictor_rotation, steps_of, visible_to
from pupujepa.randomness import generator
from pupujepa.training.masks import RANDOM, Mask, MaskConfig, num_context


@torch.no_grad()
def predictor_attention(model: PupuJEPA, mel_TF: Tensor, mask: Mask, *, region: NDArray[np.bool_]) -> Tensor:
    """Computes the attention of each predictor head from the mask tokens of a region, their mean.

    Args:
        mel_TF: one normalised spectrogram.
        mask: the encoder's context and the predictor's targets.
        region: boolean [steps, bands]; all its patches must be targets of the mask.

    Returns:
        [L, H, steps, bands]; each map sums to 1, and is NaN at patches that are neither context nor target.

    Raises:
        UserError: the region is empty, or has patches that are not targets.
    """
    config, device, mel_BTF = model.config, mel_TF.device, mel_TF[None]
    steps = steps_of(mel_BTF, config)
    if region.shape != (steps, config.grid_bands):
        raise UserError(f"the region has shape {region.shape}, the spectrogram's grid is {(steps, config.grid_bands)}")
    chosen = np.flatnonzero(region)
    if not chosen.size:
        raise UserError("the region is empty, so it has no queries; choose at least one patch")
    outside = np.setdiff1d(chosen, mask.target)
    if outside.size:
        raise UserError(
            f"{outside.size} of the region's {chosen.size} patches are not targets of the mask (first: {outside[0]}), "
            "so the predictor has no query there; mask the whole region"
        )
    # positions of the region's patches in the predictor's sequence: context, then sorted targets
    queries = torch.as_tensor(len(mask.context) + np.searchsorted(mask.target, chosen), device=device)
    context_BK = torch.as_tensor(mask.context, device=device)[None]
    sequence_BN = torch.cat([context_BK, torch.as_tensor(mask.target, device=device)[None]], dim=1)
    encoder = model.encoder("student")  # as in training
    grid_rotation = encoder_rotation(config, steps, device)
    context_BKD = encoder(*visible_to(encoder, model.tokens(mel_BTF), context_BK, grid_rotation))
    x_BND = model.predictor.assemble(context_BKD, sequence_BN)
    rotation = predictor_rotation(config, steps, sequence_BN)
    rows = []
    for module in model.predictor.blocks:
        block = cast(Block, module)
        query, key, _ = block.attn.project(block.norm1(x_BND), rotation)
        rows.append(attention_weights(query[:, :, queries], key)[0].mean(1))  # [H, N]
        x_BND = block(x_BND, rotation)  # all tokens, also in the last block, whose context outputs nobody needs
    rows_LHN = torch.stack(rows)
    grid = rows_LHN.new_full((*rows_LHN.shape[:2], steps * config.grid_bands), torch.nan)
    grid[:, :, sequence_BN[0]] = rows_LHN  # from the order of the sequence to that of the grid
    return grid.unflatten(-1, (steps, config.grid_bands))


def attention_weights(query_BHMD: Tensor, key_BHND: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(D)) in float32: [B, H, M, N]."""
    scores = query_BHMD.float() @ key_BHND.float().transpose(-1, -2) / math.sqrt(key_BHND.shape[-1])
    return scores.softmax(-1)


def region_attention(
    model: PupuJEPA, mel_TF: Tensor, region: NDArray[np.bool_], *, ratio: float = 0.8, seed: int = 0
) -> NDArray[np.float64]:
    """Returns each head's attention from a hidden region to all other patches: [L, H, steps, bands].

    Each map is zero inside the region and sums to one outside it.

    Args:
        mel_TF: one normalised spectrogram.
        region: boolean [steps, bands].
        ratio: share of the patches that each pass hides, as in training.
        seed: of the split of patches into passes.

    Raises:
        UserError: a region that is empty, covers everything, or does not fit the spectrogram's grid.
    """
    total_LHTF, seen = np.zeros(1), np.zeros(region.size)
    for mask in contexts_around(region, ratio=ratio, seed=seed):
        grid = predictor_attention(model, mel_TF, mask, region=region).double().cpu().numpy()
        visible = np.zeros(region.size, bool)
        visible[mask.context] = True
        total_LHTF = total_LHTF + np.where(visible.reshape(region.shape), grid, 0.0)
        seen += visible
    mean_LHTF = total_LHTF / np.maximum(seen, 1).reshape(region.shape)  # the last pass repeats some patches
    return mean_LHTF / mean_LHTF.sum((-2, -1), keepdims=True)


def contexts_around(region: NDArray[np.bool_], *, ratio: float, seed: int) -> Iterator[Mask]:
    """Splits the patches outside a region [steps, bands] into contexts of the training size.

    Patches of earlier contexts fill up the last one.

    Raises:
        UserError: no patch is outside the region.
    """
    free = np.flatnonzero(~region.ravel())
    if not len(free):
        raise UserError("the region covers the whole crop, so no patch can be attended to; choose a smaller one")
    size = min(num_context(MaskConfig(ratio=ratio), region.size), len(free))
    order = generator(seed, "attention", "contexts").permutation(free)
    for start in range(0, len(order), size):
        context = np.sort(order[start : start + size] if start + size <= len(order) else order[-size:])
        yield Mask(context, np.setdiff1d(np.arange(region.size), context), RANDOM)
