"""Adam with one learning rate per head: every head steps exactly as if it were the only one.

Adam is elementwise, so stacked heads do not touch each other; only the rate differs, and it is broadcast over the
leading dimensions. `torch.optim.Adam` would need one parameter group, and one small kernel, per head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class StackedAdam:
    """Adam (Kingma and Ba 2015; torch's defaults: betas .9 and .999, epsilon 1e-8, no weight decay)."""

    def __init__(
        self, parameters: Sequence[Tensor], *, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
    ):
        self._parameters = list(parameters)
        self._first = [torch.zeros_like(p) for p in parameters]
        self._second = [torch.zeros_like(p) for p in parameters]
        self._betas = betas
        self._epsilon = epsilon
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate_heads: Tensor) -> None:
        """Moves the parameters in place.

        Args:
            gradients: one for each parameter.
            rate_heads: learning rates; its shape is the leading shape of every parameter.
        """
        self._steps += 1
        beta1, beta2 = self._betas
        correction1, correction2 = 1 - beta1**self._steps, 1 - beta2**self._steps
        torch._foreach_lerp_(self._first, list(gradients), 1 - beta1)
        torch._foreach_mul_(self._second, beta2)
        torch._foreach_addcmul_(self._second, list(gradients), list(gradients), 1 - beta2)
        scale = torch._foreach_sqrt(self._second)
        torch._foreach_div_(scale, correction2**0.5)
        torch._foreach_add_(scale, self._epsilon)
        for parameter, first, denominator in zip(self._parameters, self._first, scale, strict=True):
            rate = (rate_heads / correction1).reshape(*rate_heads.shape, *[1] * (parameter.ndim - rate_heads.ndim))
            parameter.addcmul_(first / denominator, rate, value=-1.0)
