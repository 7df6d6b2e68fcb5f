"""Losses per head, and averages of slices into items, for the outputs of many heads.

Legend: N slices or items, T frames, C outputs; heads are any leading dimensions.
"""

import torch
from torch import Tensor

from distributed.marble.tasks.tasks import TargetKind, Task

# log-odds for bf16 probabilities of exactly 0 and 1: beyond all others
_LARGEST_LOG_ODDS = 1e3


def loss_of_heads(logits: Tensor, targets: Tensor, kind: TargetKind) -> Tensor:
    """Returns the mean loss of each head.

    Args:
        logits: [..., N, C] or [..., N, T, C].
        targets: class numbers [..., N] or [..., N, T], or floats in the shape of the logits; broadcast over heads.
            Frames of class -1 are ignored.
    """
    if kind == "frame_classes":
        counts = targets >= 0  # frames with a class
        log_p = logits.log_softmax(-1)
        # gather needs valid indices; `counts` removes the clamped ones
        chosen = log_p.gather(-1, targets.clamp(min=0).expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        return -(chosen * counts).sum((-2, -1)) / counts.sum((-2, -1)).clamp(min=1)
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
        return logits  # items are numbered in order of appearance, so one slice per item is the identity
    pooled = logits.new_zeros(*logits.shape[:-3], items, *logits.shape[-2:])
    pooled.index_add_(-3, item_of_slice, logits)
    counts = torch.bincount(item_of_slice, minlength=items)
    return pooled / counts.reshape(-1, 1, 1)


def as_outputs(logits: Tensor, kind: TargetKind) -> Tensor:
    """Drops the frame dimension of clip tasks: [..., N, 1, C] -> [..., N, C]."""
    return logits if kind in ("frames", "frame_classes") else logits.squeeze(-2)


def item_outputs(task: Task, logits: Tensor, item_of_slice: Tensor, items: int) -> Tensor:
    """Returns the outputs of items: [..., N slices, T, C] -> [..., N items, C] (or [..., N, T, C]).

    Pooling "probabilities" averages softmax outputs and returns their logarithm. "logits_bf16" rounds as autocast does
    upstream: logits and their mean to bf16, and the probabilities of tags too. Those are returned as log-odds, so that
    outputs with equal bf16 probabilities are tied.
    """
    if task.pooling == "probabilities":
        pooled = pool_items(logits.softmax(-1), item_of_slice, items).clamp_min(torch.finfo(logits.dtype).tiny).log()
    elif task.pooling == "logits_bf16":
        pooled = pool_items(logits.bfloat16().float(), item_of_slice, items).bfloat16()
        if task.target == "multilabel":
            odds = torch.logit(pooled.sigmoid().double())
            return as_outputs(odds.clamp(-_LARGEST_LOG_ODDS, _LARGEST_LOG_ODDS), task.target)
        pooled = pooled.float()
    else:
        pooled = pool_items(logits, item_of_slice, items)
    return as_outputs(pooled, task.target)
