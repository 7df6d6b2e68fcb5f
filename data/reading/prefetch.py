"""Prefetching of shards into the node's cache, in a thread of the reader's process.

The order says which shards come: the rest of each lane's window, then the next windows, past the end of the epoch. The
depth is in bytes, because both the disk's room and the lead over a slow store are. A failure is not reported here; the
reader meets it when it needs the shard, and names it.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import zip_longest

from data.order.epoch import EpochOrder, Layout, Window
from data.reading.cache import ShardCache
from data.shards.manifest import Manifest
from pupujepa.errors import UserError

_LOG = logging.getLogger(__name__)


class Prefetcher:
    """A thread that fetches ahead of `follow` until `close`.

    Args:
        lanes: of this worker; the workers of a rank share its lanes.
        depth_bytes: of shards beyond the current windows, whose shards are always fetched.
        last_step: end of the run, if any.

    Raises:
        UserError: a negative depth.
    """

    def __init__(
        self,
        cache: ShardCache,
        manifest: Manifest,
        *,
        layout: Layout,
        lanes: Sequence[int],
        depth_bytes: int,
        last_step: int | None = None,
    ):
        if depth_bytes < 0:
            raise UserError(f"prefetch_bytes {depth_bytes} is negative; use 0 to fetch only the current windows")
        self._cache, self._manifest, self._layout, self._lanes = cache, manifest, layout, lanes
        self._depth_bytes, self._last_step = depth_bytes, last_step
        self._order_of = lru_cache(maxsize=2)(partial(EpochOrder, layout))
        self._step = 0
        self._closed = self._started = False
        self._wake = threading.Event()
        # a daemon: a worker that ends must not wait for a download
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def follow(self, step: int) -> None:
        """Records that the reader is at global step `step`; the first call starts the thread."""
        self._step = step
        self._wake.set()
        if not self._started and self._lanes:
            self._started = True
            self._thread.start()

    def close(self) -> None:
        """Ends the thread after its current download, without waiting for a long one."""
        self._closed = True
        self._wake.set()
        if self._started:
            self._thread.join(timeout=1.0)  # a daemon thread ends with the process anyway

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()  # before the search, so that a step during it is not missed
            tried: set[int] = set()
            # looked up again after each shard, because the reader has moved on
            while not self._closed and self._fetch_first_lacking(tried):
                pass

    def _fetch_first_lacking(self, tried: set[int]) -> bool:
        """Fetches the first needed shard that was not tried. Returns False if there is none, or no room."""
        for shard in within_depth(self._rounds(), [e.bytes for e in self._manifest.shards], self._depth_bytes):
            if shard in tried:
                continue
            entry = self._manifest.shards[shard]
            lacking = not self._cache.holds(entry)
            try:
                # cached ones too, which extends their grace period
                if not self._cache.prefetch(entry):
                    return False  # no room until the reader leaves a window
            except UserError as error:
                _LOG.debug("could not fetch ahead: %s", error)
            if lacking:
                tried.add(shard)
                return True
        return False

    def _rounds(self) -> Iterator[list[int]]:
        per_step = self._layout.items_per_lane_step
        positions = dict.fromkeys(self._lanes, self._step * per_step)
        end = None if self._last_step is None else self._last_step * per_step
        return upcoming_shards(self._layout, positions, order_of=self._order_of, end=end)


def within_depth(rounds: Iterable[Sequence[int]], sizes_bytes: Sequence[int], depth_bytes: int) -> Iterator[int]:
    """Yields the shards of the first round, then those of later rounds within the depth; each shard once."""
    seen: set[int] = set()
    ahead_bytes = 0
    for number, shards in enumerate(rounds):
        for shard in shards:
            if shard in seen:
                continue
            seen.add(shard)
            if number > 0:  # the first round is always fetched
                ahead_bytes += sizes_bytes[shard]
                if ahead_bytes > depth_bytes:
                    return
            yield shard


def upcoming_shards(
    layout: Layout,
    positions: Mapping[int, int],
    *,
    order_of: Callable[[int], EpochOrder],
    end: int | None = None,
) -> Iterator[list[int]]:
    """Yields the shards of the lanes' current windows, then of the next ones, to the next epoch's end.

    Shards of a window come in the order of their first sample. Shards whose samples are in no step are skipped.

    Args:
        order_of: returns the order of an epoch.
        positions: of each lane, in items since the start of the run.
        end: of every lane, in the same unit.
    """
    per_epoch = layout.steps_per_epoch * layout.items_per_lane_step
    lanes = [
        _windows_of_lane(order_of, lane, position, per_epoch=per_epoch, end=end) for lane, position in positions.items()
    ]
    for at_once in zip_longest(*lanes, fillvalue=()):
        # lanes advance together: the first shard of each is needed before the second of any
        yield [shard for nth in zip_longest(*at_once) for shard in nth if shard is not None]


def _windows_of_lane(
    order_of: Callable[[int], EpochOrder], lane: int, position: int, *, per_epoch: int, end: int | None
) -> Iterator[list[int]]:
    """Yields the shards of each window of a lane, from the current one to the end of the next epoch."""
    this_epoch = position // per_epoch
    for epoch in (this_epoch, this_epoch + 1):
        first = max(0, position - epoch * per_epoch)
        stop = per_epoch if end is None else min(per_epoch, end - epoch * per_epoch)
        if first >= stop:
            return
        order = order_of(epoch)
        lane_first, _ = order.lane_range(lane)
        window: Window | None = order.window_of_position(first, lane)
        while window is not None and window.first_item - lane_first < stop:
            window_stop = min(stop, window.last_item - lane_first)
            yield list(dict.fromkeys(order.lane_items(lane, first, window_stop).shard.tolist()))
            first, window = window_stop, order.next_window(window)
