"""What the stream counted between two rows of the log, summed over all ranks."""

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.distributed as dist

from data.tally import COUNTED

_SUMMED = (*COUNTED, "wait_s")


class Counting(Protocol):
    """A stream, as far as its counters go."""

    def counters(self) -> Mapping[str, float]:
        """Returns sums since the stream was made."""


class StreamCounts:
    """Rows hold what was counted since the row before, so that a run's total is the sum of its rows, resumed or not."""

    def __init__(self, stream: Counting, *, device: torch.device):
        self._stream, self._device = stream, device
        self._before = dict.fromkeys(_SUMMED, 0.0)

    def since_last(self) -> dict[str, float]:
        """Returns `data/NAME` for each name of `data.tally.COUNTED`, and `data/wait_s`; all ranks call it together."""
        now = self._stream.counters()
        counted = [now[name] - self._before[name] for name in _SUMMED]
        self._before = {name: now[name] for name in _SUMMED}
        total = torch.tensor(counted, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return {f"data/{name}": value for name, value in zip(_SUMMED, total.tolist(), strict=True)}
