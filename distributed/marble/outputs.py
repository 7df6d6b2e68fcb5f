"""What the outputs of many heads are worth: losses by head, slices averaged into items.

Legend: N slices or items, T frames, C outputs; heads are any leading dimensions.
"""

import torch
from torch import Tensor

from distributed.marble.tasks import TargetKind


def loss_of_heads(logits: Tensor, targets: Tensor, kind: TargetKind) -> Tensor:
    """Returns the mean loss of each head.

    Args:
        logits: [..., N, C] or [..., N, T, C].
        targets: class numbers [..., N] or floats shaped as the logits, broadcast over the heads.
    """
    if kind == "multiclass":
        chosen = logits.log_softmax(-1).gather(-1, targets.expand(logits.shape[:-1]).unsqueeze(-1))
        return -chosen.flatten(-2).mean(-1)
    if kind == "regression":
        error = (logits - targets).square()
    else:
        error = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, targets.expand(logits.shape), reduction="none"
        )
    return error.flatten(start_dim=error.ndim - _target_dimensions(kind)).mean(-1)


def _target_dimensions(kind: TargetKind) -> int:
    """Returns the dimensions of one split's targets: [N], [N, C] or [N, T, C]."""
    return {"multiclass": 1, "multilabel": 2, "regression": 2, "frames": 3}[kind]


def pool_items(logits: Tensor, item_of_slice: Tensor, items: int) -> Tensor:
    """Averages the logits of the slices of each item: [..., N slices, T, C] -> [..., N items, T, C]."""
    if items == len(item_of_slice):
        return logits  # slices are numbered in order of appearance, so one slice an item is the identity
    pooled = logits.new_zeros(*logits.shape[:-3], items, *logits.shape[-2:])
    pooled.index_add_(-3, item_of_slice, logits)
    counts = torch.bincount(item_of_slice, minlength=items)
    return pooled / counts.reshape(-1, 1, 1)


def as_outputs(logits: Tensor, kind: TargetKind) -> Tensor:
    """Drops the frame dimension of clip tasks: [..., N, 1, C] -> [..., N, C]."""
    return logits if kind == "frames" else logits.squeeze(-2)
