"""Adam with one learning rate per head: every head steps exactly as if it were the only one.

Adam is elementwise, so stacked heads do not touch each other; only the rate differs, and it is broadcast over the
leading dimensions. `torch.optim.Adam` would need one parameter group, and one small kernel, per head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # torch's defaults


class StackedAdam:
    """Adam (Kingma and Ba 2015) without weight decay."""

    def __init__(self, parameters: Sequence[Tensor]):
        self._parameters = list(parameters)
        self._first = [torch.zeros_like(p) for p in parameters]
        self._second = [torch.zeros_like(p) for p in parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate_heads: Tensor) -> None:
        """Moves the parameters in place.

        Args:
            gradients: one for each parameter.
            rate_heads: learning rates; its shape is the leading shape of every parameter.
        """
        self._steps += 1
        correction1, correction2 = 1 - _BETA1**self._steps, 1 - _BETA2**self._steps
        torch._foreach_lerp_(self._first, list(gradients), 1 - _BETA1)
        torch._foreach_mul_(self._second, _BETA2)
        torch._foreach_addcmul_(self._second, list(gradients), list(gradients), 1 - _BETA2)
        scale = torch._foreach_sqrt(self._second)
        torch._foreach_div_(scale, correction2**0.5)
        torch._foreach_add_(scale, _EPSILON)
        for parameter, first, denominator in zip(self._parameters, self._first, scale, strict=True):
            rate = (rate_heads / correction1).reshape(*rate_heads.shape, *[1] * (parameter.ndim - rate_heads.ndim))
            parameter.addcmul_(first / denominator, rate, value=-1.0)
