"""Brings shards into the node's cache before the reader needs them, in a thread of the reader's process.

What is coming is known from the order: the rest of each lane's window, then the next window. A failure here is not
reported; the reader meets it itself when it needs the shard, and can name the step.
"""

import logging
import threading
from collections.abc import Iterator, Sequence

from data.cache import ShardCache
from data.manifest import Manifest
from data.order import EpochOrder, EpochOrders, Layout, Window
from pupujepa.errors import UserError

_LOG = logging.getLogger(__name__)


class Prefetcher:
    """Fetches ahead of `follow` until `close`.

    Args:
        lanes: to look after; the workers of a rank share its lanes among them.
        last_step: where the run ends, if it does.
    """

    def __init__(
        self,
        cache: ShardCache,
        manifest: Manifest,
        *,
        layout: Layout,
        lanes: Sequence[int],
        last_step: int | None = None,
    ):
        self._cache, self._manifest, self._lanes, self._last_step = cache, manifest, lanes, last_step
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
        """Ends the thread after the download that it is at, which may be long in coming: nobody waits for that."""
        self._closed = True
        self._wake.set()
        if self._started:
            self._thread.join(timeout=1.0)

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
        upcoming = upcoming_shards(self._orders, self._step, self._lanes, last_step=self._last_step)
        return next((s for s in upcoming if s not in tried and not self._cache.holds(self._manifest.shards[s])), None)


def upcoming_shards(
    orders: EpochOrders, step: int, lanes: Sequence[int], *, last_step: int | None = None
) -> Iterator[int]:
    """Yields the shards that `lanes` need from global step `step` to the end of their next windows, the soonest first.

    Within a window, shards come in the order of their first sample. After an epoch's last window comes the next epoch's
    first one. Samples that no step holds, and steps from `last_step` on, need no shard.
    """
    order, step_of_epoch = orders.at(step)
    layout = order.layout
    first = step_of_epoch * layout.items_per_lane_step
    stop = _items_per_lane(layout, order.epoch, last_step)
    windows = [order.window(step_of_epoch, lane) for lane in lanes]
    for window in windows:
        yield from _shards_of_window(order, window, first, stop)
    of_next_epoch = _items_per_lane(layout, order.epoch + 1, last_step)
    next_order = None
    for window in windows:
        following = order.next_window(window)
        if following is not None and following.first_item - order.lane_range(window.lane)[0] < stop:
            yield from _shards_of_window(order, following, 0, stop)
        elif of_next_epoch > 0:
            next_order = next_order or EpochOrder(layout, order.epoch + 1)
            yield from _shards_of_window(next_order, next_order.window(0, window.lane), 0, of_next_epoch)


def _items_per_lane(layout: Layout, epoch: int, last_step: int | None) -> int:
    """Returns how many items each lane gives in an epoch of a run that ends at `last_step`."""
    steps = layout.steps_per_epoch
    if last_step is not None:
        steps = max(0, min(steps, last_step - epoch * steps))
    return steps * layout.items_per_lane_step


def _shards_of_window(order: EpochOrder, window: Window, first: int, stop: int) -> list[int]:
    """Returns the shards of those items of a window that are items [first, stop) of its lane, by first need."""
    lane_first = order.lane_range(window.lane)[0]
    first, stop = max(first, window.first_item - lane_first), min(stop, window.last_item - lane_first)
    return list(dict.fromkeys(order.lane_items(window.lane, first, stop).shard.tolist()))
