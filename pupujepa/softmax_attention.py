"""Scaled dot-product attention: torch's, and on a CPU in bf16 our own order of the same sums, which is faster there.

torch's fused kernel for the CPU multiplies bf16 tiles in float32. Plain matrix products use the processor's bf16
instructions instead, and as long as the scores of one product stay in the cache, writing them down costs little
(benchmarks/attention.py measures by how much). Scores and weights are rounded to bf16 in between, as every other
product under autocast is: the output is off by 2^-7 where the fused kernel's is off by 2^-8. Everywhere else, float32
and accelerators, torch's kernel is used.

Shapes: B batch, H heads, G heads of any clips, N queries, K keys, D dimensions of a head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SCORES_IN_CACHE = 1 << 20  # 2 MiB of bf16 scores at a time


def attend(query_BHND: Tensor, key_BHKD: Tensor, value_BHKD: Tensor) -> Tensor:
    """Returns softmax(query key^T / sqrt(D)) value, [B, H, N, D], in the inputs' dtype."""
    if query_BHND.device.type != "cpu" or query_BHND.dtype != torch.bfloat16:
        return functional.scaled_dot_product_attention(query_BHND, key_BHKD, value_BHKD)
    heads = (x.flatten(0, 1) for x in (query_BHND, key_BHKD, value_BHKD))
    return _AttentionInPieces.apply(*heads).unflatten(0, query_BHND.shape[:2])


class _AttentionInPieces(torch.autograd.Function):
    """Attention whose weights are not kept: the backward pass computes them again, piece by piece."""

    @staticmethod
    def forward(ctx: Any, query_GND: Tensor, key_GKD: Tensor, value_GKD: Tensor) -> Tensor:
        mixed = [_weights(query_GND[g, n], key_GKD[g]) @ value_GKD[g] for g, n in _pieces(query_GND, key_GKD)]
        mixed_GND = torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in mixed]).view(query_GND.shape)
        ctx.save_for_backward(query_GND, key_GKD, value_GKD)
        return mixed_GND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query_GND, key_GKD, value_GKD = ctx.saved_tensors
        grad_GND = gradients[0]
        scale = query_GND.shape[-1] ** -0.5
        grad_query_GND = torch.empty_like(query_GND)
        # Keys and values gather from many pieces, in float32: a sum of bf16 would forget the small ones. They are held
        # transposed, because a product whose left side is the transposed weights takes up to ten times as long.
        grad_key_GDK, grad_value_GDK = (x.new_zeros(x.mT.shape, dtype=torch.float32) for x in (key_GKD, value_GKD))
        for g, n in _pieces(query_GND, key_GKD):
            weight_GNK = _weights(query_GND[g, n], key_GKD[g])
            grad_weight_GNK = grad_GND[g, n] @ value_GKD[g].mT
            grad_score_GNK = torch.ops.aten._softmax_backward_data(grad_weight_GNK, weight_GNK, -1, weight_GNK.dtype)
            grad_query_GND[g, n] = grad_score_GNK @ key_GKD[g]
            grad_key_GDK[g] += query_GND[g, n].mT @ grad_score_GNK
            grad_value_GDK[g] += grad_GND[g, n].mT @ weight_GNK
        grad_key_GKD, grad_value_GKD = grad_key_GDK.mT * scale, grad_value_GDK.mT
        return grad_query_GND * scale, grad_key_GKD.to(key_GKD.dtype), grad_value_GKD.to(value_GKD.dtype)


def _pieces(query_GND: Tensor, key_GKD: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields as many whole heads, or else as many queries of one head, as have their scores in the cache; in order."""
    heads, queries = query_GND.shape[:2]
    keys = key_GKD.shape[1]
    per_piece = max(1, SCORES_IN_CACHE // (queries * keys))
    rows = min(queries, max(1, SCORES_IN_CACHE // keys))
    for head in range(0, heads, per_piece):
        for row in range(0, queries, rows):
            yield slice(head, head + per_piece), slice(row, row + rows)


def _weights(query_GND: Tensor, key_GKD: Tensor) -> Tensor:
    """Returns the attention weights [G, N, K]."""
    return ((query_GND * query_GND.shape[-1] ** -0.5) @ key_GKD.mT).softmax(-1)
