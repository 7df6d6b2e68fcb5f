"""Windows over a long clip: where they lie, and how the features of overlapping ones become one sequence.

Windows overlap by half and are blended with triangular weights. The last one is moved back to end with the clip, so
that every window has full context.

Shapes: T steps, N bands, D width, L layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def window_starts(steps: int, window_steps: int) -> list[int]:
    """Returns the first steps of windows that overlap by half and end with the clip; the last may overlap by more."""
    hop = max(window_steps // 2, 1)
    starts = list(range(0, steps - window_steps, hop))
    return [*starts, steps - window_steps]


class CrossFade:
    """Blends overlapping windows, given in order, and lets go of every step that no later window touches."""

    def __init__(self, starts: Sequence[int], window_steps: int) -> None:
        self._starts = list(starts)
        self._taken = 0
        ramp = torch.arange(1, window_steps + 1, dtype=torch.float32)
        self._weights = torch.minimum(ramp, ramp.flip(0))
        self._sum: Tensor | None = None
        self._weight_sum = torch.zeros(0)

    def add(self, window_LTND: Tensor) -> Tensor:
        """Takes the next window [L, window_steps, bands, D] and returns the steps that are now final."""
        weighted = window_LTND * self._weights[:, None, None]
        if self._sum is None:
            total, weight = weighted, self._weights
        else:
            held = self._sum.shape[1]
            total = torch.cat([self._sum + weighted[:, :held], weighted[:, held:]], dim=1)
            weight = torch.cat([self._weight_sum + self._weights[:held], self._weights[held:]])
        start = self._starts[self._taken]
        self._taken += 1
        last = self._taken == len(self._starts)
        final = len(self._weights) if last else self._starts[self._taken] - start
        self._sum, self._weight_sum = total[:, final:], weight[final:]
        return total[:, :final] / weight[:final, None, None]
