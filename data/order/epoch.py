"""The order of the samples of one epoch of one corpus, in integers only.

The order is a pure function of (manifest digest, seed, epoch) and the layout of the run (lanes, global batch, window,
crops per sample). It knows no rank, so global batch t holds the same samples for any world size, number of workers and
micro-batch.

The shards are permuted and laid end to end: N items. An item is one draw of one sample; the `crops_per_sample` items of
a sample are adjacent. The sequence is cut into `lanes` equal runs: lane j is [j*N//L, (j+1)*N//L). Items are shuffled
inside a lane, within windows of `window_shards` shards. Global batch t takes `global_batch / lanes` items from every
lane, and rank r of W serves lanes r, r+W, r+2W, ... So one rank reads a shard per epoch, except for at most L-1 shards
that a lane boundary cuts. No epoch is materialised: any step costs one window. docs/order.md has a picture.

A *slot* is an index into the permuted shards, a *position* an index into the shuffled lane.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.order.layout import Layout
from pupujepa.randomness import generator

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """Items as columns of equal length: lane, shard, sample of the shard, draw of the sample."""

    lane: IntArray
    shard: IntArray
    sample_of_shard: IntArray
    draw: IntArray

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, rows: slice) -> "Items":
        return Items(self.lane[rows], self.shard[rows], self.sample_of_shard[rows], self.draw[rows])


def concatenate(parts: Sequence[Items]) -> Items:
    """Returns the rows of all parts, in order."""
    return Items(
        np.concatenate([p.lane for p in parts]),
        np.concatenate([p.shard for p in parts]),
        np.concatenate([p.sample_of_shard for p in parts]),
        np.concatenate([p.draw for p in parts]),
    )


@dataclass(frozen=True)
class Window:
    """One shuffle window of a lane: its index, slots [first_slot, last_slot), items [first, last)."""

    lane: int
    index: int
    first_slot: int
    last_slot: int
    first_item: int
    last_item: int


class EpochOrder:
    """The order of one epoch: two numbers per shard, and the shuffle of each lane's latest window."""

    def __init__(self, layout: Layout, epoch: int):
        self.layout = layout
        self.epoch = epoch
        self._key = (layout.manifest_digest, layout.seed, epoch)
        items_per_shard = np.asarray(layout.samples_per_shard, dtype=np.int64) * layout.crops_per_sample
        self._shard_of_slot = permutation(len(items_per_shard), *self._key, "shards")  # [shards]
        # [shards + 1]
        self._first_item_of_slot = np.concatenate([[0], np.cumsum(items_per_shard[self._shard_of_slot])])
        self._shuffle_of_lane: dict[int, tuple[int, IntArray]] = {}

    def lane_items(self, lane: int, first: int, last: int) -> Items:
        """Returns items [first, last) of the shuffled lane."""
        lane_first, lane_last = self.lane_range(lane)
        parts, position = [], lane_first + first
        end = min(lane_first + last, lane_last)
        while position < end:  # one turn per window
            window = self._window_at(lane, position)
            stop = min(end, window.last_item)
            shuffle = self._shuffle(window)
            parts.append(window.first_item + shuffle[position - window.first_item : stop - window.first_item])
            position = stop
        items = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return self._locate(lane, items)

    def lane_range(self, lane: int) -> tuple[int, int]:
        """Returns [first, last) of the lane's run in the permuted sequence of items."""
        if not 0 <= lane < self.layout.lanes:
            raise IndexError(f"lane {lane} of {self.layout.lanes} lanes")
        num_items, lanes = self.layout.num_items, self.layout.lanes
        return lane * num_items // lanes, (lane + 1) * num_items // lanes  # lengths differ by at most one

    def window(self, step: int, lane: int) -> Window:
        """Returns the window of the lane's first item in `step`."""
        return self.window_of_position(step * self.layout.items_per_lane_step, lane)

    def window_of_position(self, position: int, lane: int) -> Window:
        """Returns the window that holds the item at `position` of the lane."""
        lane_first, _ = self.lane_range(lane)
        return self._window_at(lane, lane_first + position)

    def window_of_item(self, lane: int, shard: int, sample_of_shard: int, draw: int) -> Window:
        """Returns the window that holds an item of the lane."""
        slot = int(np.flatnonzero(self._shard_of_slot == shard)[0])
        item_of_slot = sample_of_shard * self.layout.crops_per_sample + draw  # draws of a sample are adjacent
        return self._window_at(lane, int(self._first_item_of_slot[slot]) + item_of_slot)

    def next_window(self, window: Window) -> Window | None:
        """Returns the lane's next window, or None after the last one of the epoch."""
        _, lane_last = self.lane_range(window.lane)
        return self._window_at(window.lane, window.last_item) if window.last_item < lane_last else None

    def windows_from(self, window: Window) -> Iterator[Window]:
        """Yields all windows of the lane once, from `window` to the end, then from the start."""
        following: Window | None = window
        while following is not None:
            yield following
            following = self.next_window(following)
        following = self.window(0, window.lane)
        while following is not None and following.index < window.index:
            yield following
            following = self.next_window(following)

    def window_shards(self, window: Window) -> list[int]:
        """Returns the shards of a window."""
        return [int(shard) for shard in self._shard_of_slot[window.first_slot : window.last_slot]]

    def window_items(self, window: Window) -> Items:
        """Returns all items of a window, in reading order."""
        return self._locate(window.lane, window.first_item + self._shuffle(window))

    def left_out(self) -> Items:
        """Returns the items of this epoch that are in no batch."""
        # equal in all lanes, so the longest loses most
        used = self.layout.steps_per_epoch * self.layout.items_per_lane_step
        return concatenate([self.lane_items(lane, used, self._lane_length(lane)) for lane in range(self.layout.lanes)])

    def _lane_length(self, lane: int) -> int:
        first, last = self.lane_range(lane)
        return last - first

    def _window_at(self, lane: int, item: int) -> Window:
        first_item_of_slot = self._first_item_of_slot
        lane_first, lane_last = self.lane_range(lane)
        lane_first_slot = int(np.searchsorted(first_item_of_slot, lane_first, side="right")) - 1
        lane_last_slot = int(np.searchsorted(first_item_of_slot, lane_last, side="left"))  # exclusive
        slot = int(np.searchsorted(first_item_of_slot, item, side="right")) - 1
        index = (slot - lane_first_slot) // self.layout.window_shards
        first_slot = lane_first_slot + index * self.layout.window_shards
        last_slot = min(first_slot + self.layout.window_shards, lane_last_slot)
        first_item = max(lane_first, int(first_item_of_slot[first_slot]))  # lane boundaries may cut the outer shards
        last_item = min(lane_last, int(first_item_of_slot[last_slot]))
        return Window(lane, index, first_slot, last_slot, first_item, last_item)

    def _shuffle(self, window: Window) -> IntArray:
        held = self._shuffle_of_lane.get(window.lane)
        if held is None or held[0] != window.index:
            size = window.last_item - window.first_item
            held = (window.index, permutation(size, *self._key, "window", window.lane, window.index))
            self._shuffle_of_lane[window.lane] = held
        return held[1]

    def _locate(self, lane: int, items: IntArray) -> Items:
        slot_of_item = np.searchsorted(self._first_item_of_slot, items, side="right") - 1
        item_of_slot = items - self._first_item_of_slot[slot_of_item]
        sample_of_shard, draw = np.divmod(item_of_slot, self.layout.crops_per_sample)
        lane_of_item = np.full(len(items), lane, dtype=np.int64)
        return Items(lane_of_item, self._shard_of_slot[slot_of_item], sample_of_shard, draw)


class EpochOrders:
    """The orders of successive epochs; keeps the last two, as lanes of a mix end an epoch one by one."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self._kept: dict[int, EpochOrder] = {}

    def of_epoch(self, epoch: int) -> EpochOrder:
        """Returns the order of an epoch."""
        if epoch not in self._kept:
            self._kept = dict([*self._kept.items(), (epoch, EpochOrder(self.layout, epoch))][-2:])
        return self._kept[epoch]

    def at(self, step: int) -> tuple[EpochOrder, int]:
        """Returns the order of the epoch that holds global step `step`, and the step's index in it."""
        epoch, step_of_epoch = divmod(step, self.layout.steps_per_epoch)
        return self.of_epoch(epoch), step_of_epoch


def permutation(size: int, *key: int | str) -> IntArray:
    """Returns the permutation of range(size) of `key`."""
    # numpy keeps a bit generator's raw stream between releases, but not `Generator.permutation`: a run must resume
    # after an upgrade, so raw words are sorted
    words = generator(*key).bit_generator.random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int64)
