"""Brings shards into the node's cache before the reader needs them, in a thread of the reader's process.

What is coming is known from the order: the rest of each lane's window, then the next window. A failure here is not
reported; the reader meets it itself when it needs the shard, and can name the step.
"""

import logging
import threading
from collections.abc import Iterator, Sequence

from data.cache import ShardCache
from data.manifest import Manifest
from data.order import EpochOrder, EpochOrders, Layout
from pupujepa.errors import UserError

_LOG = logging.getLogger(__name__)


class Prefetcher:
    """Fetches ahead of `follow` until `close`.

    Args:
        lanes: to look after; the workers of a rank share its lanes among them.
    """

    def __init__(self, cache: ShardCache, manifest: Manifest, *, layout: Layout, lanes: Sequence[int]):
        self._cache, self._manifest, self._lanes = cache, manifest, lanes
        self._orders = EpochOrders(layout)
        self._step = 0
        self._closed = self._started = False
        self._wake = threading.Event()
        # a daemon, because a worker that is told to leave must not wait for a download
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def follow(self, step: int) -> None:
        """Takes note that the reader is at global step `step`; the first call starts the thread."""
        self._step = step
        self._wake.set()
        if not self._started and self._lanes:
            self._started = True
            self._thread.start()

    def close(self) -> None:
        """Ends the thread after the download that it is at."""
        self._closed = True
        self._wake.set()
        if self._started:
            self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            tried: set[int] = set()
            # looked up anew after each shard, because the reader has moved on meanwhile
            while not self._closed and (shard := self._first_upcoming(tried)) is not None:
                tried.add(shard)
                try:
                    if not self._cache.prefetch(self._manifest.shards[shard]):
                        break  # no room until the reader lets go of a window
                except UserError as error:
                    _LOG.debug("could not fetch ahead: %s", error)

    def _first_upcoming(self, tried: set[int]) -> int | None:
        upcoming = upcoming_shards(*self._orders.at(self._step), self._lanes)
        return next((s for s in upcoming if s not in tried and not self._cache.holds(self._manifest.shards[s])), None)


def upcoming_shards(order: EpochOrder, step: int, lanes: Sequence[int]) -> Iterator[int]:
    """Yields the shards that `lanes` need from `step` of the epoch to the end of the next window, the soonest first.

    Within a window, shards come in the order of their first sample. After an epoch's last window comes the next epoch's
    first one.
    """
    windows = [order.window(step, lane) for lane in lanes]
    for window in windows:
        first = order.lane_range(window.lane)[0] + step * order.layout.items_per_lane_step - window.first_item
        yield from dict.fromkeys(order.window_items(window).shard[first:].tolist())
    next_epoch: EpochOrder | None = None
    for window in windows:
        following, owner = order.next_window(window), order
        if following is None:
            next_epoch = next_epoch or EpochOrder(order.layout, order.epoch + 1)
            following, owner = next_epoch.window(0, window.lane), next_epoch
        yield from dict.fromkeys(owner.window_items(following).shard.tolist())
