"""Output of an encoder: features of slices, and the selection of layers.

Legend: B slices, L layers, M layers kept as frames, T frames, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FRAME_DTYPE = torch.float16


@dataclass(frozen=True)
class SliceFeatures:
    """Features of a batch of slices.

    Attributes:
        pooled_BLD: clip-level features, float32.
        frames_BMTD: frames of some layers, or None.
    """

    pooled_BLD: Tensor
    frames_BMTD: Tensor | None = None


def pool_states(states_LBTD: Sequence[Tensor], frame_layers: Sequence[int]) -> SliceFeatures:
    """Returns the time mean of every layer and the frames of some."""
    pooled_BLD = torch.stack([s.float().mean(dim=1) for s in states_LBTD], dim=1)
    frames = torch.stack([states_LBTD[i] for i in frame_layers], dim=1) if frame_layers else None
    return SliceFeatures(pooled_BLD, frames)


def spread_layers(num_layers: int, most: int | None) -> tuple[int, ...]:
    """Returns at most `most` layers (None: all), evenly spread.

    They include the last and, from two on, the first.
    """
    if most is None or most >= num_layers:
        return tuple(range(num_layers))
    if most == 1:
        return (num_layers - 1,)
    return tuple(round(i * (num_layers - 1) / (most - 1)) for i in range(most))
