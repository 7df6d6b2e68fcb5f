"""The norm of the averaged gradient under every ZeRO stage, and clipping by it where DeepSpeed does not."""

from typing import Any

import torch


def gradient_norm(engine: Any) -> float:
    """L2 norm of the averaged gradient before clipping.

    Call it after the backward pass under stage 0, where DeepSpeed does not record it, and else after the step.
    """
    if engine.zero_optimization_stage():
        return float(engine.get_global_grad_norm())
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def clip_without_zero(engine: Any, *, norm: float, clip_norm: float) -> None:
    """Scales the averaged gradient, whose norm is `norm`, down to `clip_norm` under stage 0; 0 does not clip."""
    if clip_norm and norm > clip_norm:
        torch.nn.utils.clip_grads_with_norm_(engine.module.parameters(), clip_norm, torch.tensor(norm))
