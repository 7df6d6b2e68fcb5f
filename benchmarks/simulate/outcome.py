"""Input and outcome of a simulated run: the machines, and the waits of the training.

It uses no clock: a run is a pure function of its order, its site and a seed.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.simulate.network import FOREVER, StoreModel
from data.stream.config import StreamConfig


@dataclass(frozen=True)
class Site:
    """The machines.

    tick_s: seconds that a rank computes on one micro-batch.
    cache_bytes: of each node. prefetch_batches: that each worker makes ahead.
    prefetch_bytes: of shards that each rank fetches ahead of the windows that it reads, as in `StreamConfig`.
    """

    store: StoreModel
    tick_s: float
    ranks_per_node: int = 8
    cache_bytes: float = FOREVER
    prefetch_batches: int = 2
    prefetch_bytes: int = StreamConfig.prefetch_bytes


@dataclass(frozen=True)
class Outcome:
    """Outcome of a simulated run.

    stall_ticks, stall_s: micro-batches before which all ranks waited, and the seconds; 0 is the start.
    fetched_bytes, fetches: over all nodes. repeated: fetches of a shard that another node, or this one, fetched too.
    """

    ticks: int
    tick_s: float
    stall_ticks: np.ndarray
    stall_s: np.ndarray
    fetched_bytes: int
    fetches: int
    repeated: int
    cache_peak_bytes: int
    busiest_bytes_per_s: float

    @property
    def start_s(self) -> float:
        """Seconds until the first micro-batch."""
        return float(self.stall_s[self.stall_ticks == 0].sum())

    def wait_share(self, first_tick: int = 1) -> float:
        """Returns the share of the time from `first_tick` on that the training waits for data."""
        waited_s = float(self.stall_s[self.stall_ticks >= first_tick].sum())
        worked_s = (self.ticks - first_tick) * self.tick_s
        return waited_s / (waited_s + worked_s)
