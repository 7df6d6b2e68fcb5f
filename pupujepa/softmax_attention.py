"""Scaled dot-product attention: torch's, and on a CPU in bf16 our own order of the same sums, which is faster there.

torch's fused kernel for the CPU multiplies bf16 tiles in float32. Two plain matrix products use the processor's bf16
instructions instead, and as long as the scores stay in the cache, writing them down costs little: 2.6 times the speed
forward and 2.9 times with the backward pass at 512 tokens (benchmarks/RESULTS.md). Scores and weights are rounded to
bf16 in between, as every other product under autocast is: the output is off by 2^-7 where the fused kernel's is off by
2^-8. Everywhere else, float32 and accelerators, torch's kernel is used.

Shapes: B batch, H heads, N queries, K keys, D dimensions of a head.
"""

import torch
from torch import Tensor
from torch.nn import functional

SCORES_IN_CACHE = 1 << 20  # 2 MiB of bf16 scores at a time
KEYS_IN_TRAINING = 1024  # beyond this the weights kept for the backward pass, H * N * K, would fill the memory


def attend(query_BHND: Tensor, key_BHKD: Tensor, value_BHKD: Tensor) -> Tensor:
    """Returns softmax(query key^T / sqrt(D)) value, [B, H, N, D], in the inputs' dtype."""
    explicit = query_BHND.device.type == "cpu" and query_BHND.dtype == torch.bfloat16
    if not explicit or (torch.is_grad_enabled() and key_BHKD.shape[-2] > KEYS_IN_TRAINING):
        return functional.scaled_dot_product_attention(query_BHND, key_BHKD, value_BHKD)
    return _attend_in_cache(query_BHND, key_BHKD, value_BHKD)


def _attend_in_cache(query_BHND: Tensor, key_BHKD: Tensor, value_BHKD: Tensor) -> Tensor:
    """Takes as many heads, or as many queries of one head, at a time as have their scores in the cache."""
    queries, keys = query_BHND.shape[-2], key_BHKD.shape[-2]
    heads = max(1, SCORES_IN_CACHE // (queries * keys))
    rows = max(1, SCORES_IN_CACHE // keys)
    grouped = zip(*(x.flatten(0, 1).split(heads) for x in (query_BHND, key_BHKD, value_BHKD)), strict=True)
    mixed = [
        torch.cat([_weigh(q, key_GKD, value_GKD) for q in query_GND.split(rows, dim=1)], dim=1)
        for query_GND, key_GKD, value_GKD in grouped
    ]
    return torch.cat(mixed).unflatten(0, query_BHND.shape[:2])


def _weigh(query_GND: Tensor, key_GKD: Tensor, value_GKD: Tensor) -> Tensor:
    scores_GNK = (query_GND * query_GND.shape[-1] ** -0.5) @ key_GKD.transpose(-1, -2)
    return scores_GNK.softmax(-1) @ value_GKD
