"""Scaled dot-product attention: torch's kernel, and a faster order of the sums for bf16 on CPUs.

torch's fused CPU kernel multiplies bf16 tiles in float32. Plain matrix products use the processor's bf16 instructions
instead, and storing the scores is cheap while they stay in the cache (measured by benchmarks/attention.py). Scores and
weights are rounded to bf16, as every product under autocast is: the output is off by 2^-7, the fused kernel's by 2^-8.
float32 and accelerators use torch's kernel.

Weights are powers of two of the scores. They are divided by their row's sum after the product with the values, which
has fewer entries. The search for each row's maximum is skipped if the lengths of queries and keys exclude an overflow.

Shapes: B batch, H heads, G heads of any clips, N queries, K keys, D dimensions of a head.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.nn import functional

SCORES_IN_CACHE = 1 << 20  # 2 MiB of bf16 scores at a time
# bf16 reaches from 2^-126 to 2^128, so exponents of +-64 leave room for the sums over keys
_SAFE_EXPONENT = 64.0


def attend(query_BHND: Tensor, key_BHKD: Tensor, value_BHKD: Tensor) -> Tensor:
    """Returns softmax(query key^T / sqrt(D)) value, [B, H, N, D], in the inputs' dtype."""
    # fake tensors only trace shapes; torch's kernel keeps as much for the backward pass
    only_shapes = not torch.compiler.is_compiling() and is_fake(query_BHND)
    if query_BHND.device.type != "cpu" or query_BHND.dtype != torch.bfloat16 or only_shapes:
        return functional.scaled_dot_product_attention(query_BHND, key_BHKD, value_BHKD)
    heads = (x.flatten(0, 1) for x in (query_BHND, key_BHKD, value_BHKD))
    return _AttentionInPieces.apply(*heads).unflatten(0, query_BHND.shape[:2])


class _AttentionInPieces(torch.autograd.Function):
    """Attention that keeps no weights: the backward pass computes them again, piece by piece."""

    @staticmethod
    def forward(ctx: Any, query_GND: Tensor, key_GKD: Tensor, value_GKD: Tensor) -> Tensor:
        base2_GND = query_GND * _base2_scale(query_GND)
        unsafe_GN1 = _unsafe_rows(base2_GND, key_GKD)
        mixed, sums = [], []
        for g, n in _pieces(query_GND, key_GKD):
            power_GNK = _powers(base2_GND[g, n], key_GKD[g], _part(unsafe_GN1, (g, n)))
            sum_GN1 = power_GNK.sum(-1, keepdim=True).float()  # torch sums bf16 in float32
            mixed.append(((power_GNK @ value_GKD[g]) / sum_GN1).to(query_GND.dtype).flatten(0, 1))
            sums.append(sum_GN1.flatten(0, 1))
        mixed_GND = torch.cat(mixed).view(query_GND.shape)
        sum_GN1 = torch.cat(sums).view(*query_GND.shape[:2], 1)
        ctx.save_for_backward(query_GND, key_GKD, value_GKD, mixed_GND, sum_GN1, unsafe_GN1)
        return mixed_GND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query_GND, key_GKD, value_GKD, mixed_GND, sum_GN1, unsafe_GN1 = ctx.saved_tensors
        base2_GND = query_GND * _base2_scale(query_GND)
        # dividing the gradient's rows by the sums is cheaper than dividing the weights
        grad_GND = (gradients[0] / sum_GN1).to(query_GND.dtype)
        mean_GN1 = (grad_GND * mixed_GND).sum(-1, keepdim=True)
        grad_query_GND = torch.empty_like(query_GND)
        # Sums over many pieces need float32: in bf16 small terms vanish. They are transposed, because a product with
        # the transposed weights on its left takes up to ten times as long.
        grad_key_GDK, grad_value_GDK = (x.new_zeros(x.mT.shape, dtype=torch.float32) for x in (key_GKD, value_GKD))
        for g, n in _pieces(query_GND, key_GKD):
            power_GNK = _powers(base2_GND[g, n], key_GKD[g], _part(unsafe_GN1, (g, n)))
            grad_score_GNK = torch.baddbmm(-mean_GN1[g, n], grad_GND[g, n], value_GKD[g].mT).mul_(power_GNK)
            grad_query_GND[g, n] = grad_score_GNK @ key_GKD[g]
            grad_key_GDK[g] += base2_GND[g, n].mT @ grad_score_GNK
            grad_value_GDK[g] += grad_GND[g, n].mT @ power_GNK
        grad_key_GKD, grad_value_GKD = grad_key_GDK.mT * math.log(2), grad_value_GDK.mT
        grad_query_GND *= query_GND.shape[-1] ** -0.5
        return grad_query_GND, grad_key_GKD.to(key_GKD.dtype), grad_value_GKD.to(value_GKD.dtype)


def _pieces(query_GND: Tensor, key_GKD: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields, in order, whole heads, or queries of one head, whose scores fit into the cache."""
    heads, queries = query_GND.shape[:2]
    keys = key_GKD.shape[1]
    per_piece = max(1, SCORES_IN_CACHE // (queries * keys))
    rows = min(queries, max(1, SCORES_IN_CACHE // keys))
    for head in range(0, heads, per_piece):
        for row in range(0, queries, rows):
            yield slice(head, head + per_piece), slice(row, row + rows)


def _base2_scale(query_GND: Tensor) -> float:
    """Returns the factor that turns products of queries and keys into exponents of two."""
    return query_GND.shape[-1] ** -0.5 / math.log(2)


def _unsafe_rows(base2_GND: Tensor, key_GKD: Tensor) -> Tensor | None:
    """Returns the queries [G, N, 1] with possibly large scores, by Cauchy's inequality, or None.

    The decision depends on the query and the keys of its head only: the rest of the batch must not change any bit.
    """
    query_length_GN1 = torch.linalg.vector_norm(base2_GND, dim=-1, keepdim=True)
    key_length_GK1 = torch.linalg.vector_norm(key_GKD, dim=-1, keepdim=True)
    # not (x < y), so that NaN counts as unsafe and stays NaN
    unsafe_GN1 = ~(query_length_GN1 * key_length_GK1.amax(1, keepdim=True) < _SAFE_EXPONENT)
    if torch.compiler.is_compiling() or is_fake(unsafe_GN1):
        return unsafe_GN1  # its values do not exist yet
    return unsafe_GN1 if unsafe_GN1.any() else None


def _powers(base2_GND: Tensor, key_GKD: Tensor, unsafe_GN1: Tensor | None) -> Tensor:
    """Returns 2^score [G, N, K]; in unsafe rows, relative to the largest score."""
    score_GNK = base2_GND @ key_GKD.mT
    if unsafe_GN1 is not None:
        score_GNK -= torch.where(unsafe_GN1, score_GNK.amax(-1, keepdim=True), 0)
    return score_GNK.exp2_()


def _part(rows_GN1: Tensor | None, piece: tuple[slice, slice]) -> Tensor | None:
    return None if rows_GN1 is None else rows_GN1[piece]
