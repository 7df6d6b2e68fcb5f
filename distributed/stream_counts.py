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
    """Rows hold what was counted since the row before, so that a run's total is the sum of its rows, resumed or not.

    What a session that fails had counted since its last row is in its end record (distributed/session_end.py).
    """

    def __init__(self, stream: Counting, *, device: torch.device):
        self._stream, self._device = stream, device
        self._before = dict.fromkeys(_SUMMED, 0.0)

    def since_last(self) -> dict[str, float]:
        """Returns `data/NAME` for each name of `data.tally.COUNTED`, and `data/wait_s`; all ranks call it together."""
        own = self.unsaid()
        self._before = dict(self._stream.counters())
        total = torch.tensor(list(own.values()), dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return dict(zip(own, total.tolist(), strict=True))

    def unsaid(self) -> dict[str, float]:
        """Returns what this rank alone counted since the last row: what would be lost when the run ends here."""
        now = self._stream.counters()
        return {f"data/{name}": now[name] - self._before[name] for name in _SUMMED}
