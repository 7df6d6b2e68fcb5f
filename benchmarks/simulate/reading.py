"""Shards that each simulated reader opens and closes, and when: taken from the real order.

The items of a step come from `data.order.epoch`, their micro-batches and workers from the rules of
`data.stream.source.ReadPlan`, and what is fetched ahead from `upcoming_shards` and `within_depth`, as in the real
prefetcher.

A *tick* is one micro-batch of a rank, counted from the start of the run; worker w of n makes ticks w, w + n, ...
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.order.epoch import EpochOrder, EpochOrders
from data.order.layout import Layout, lanes_of_rank, micro_batches_per_step
from data.reading.prefetch import upcoming_shards, within_depth


@dataclass(frozen=True)
class Run:
    """A piece of training: `steps` steps from the first one on, of `world_size` ranks.

    shard_bytes: length of each shard.
    workers: processes of each rank that make batches; 0 counts as one.
    """

    layout: Layout
    shard_bytes: tuple[int, ...]
    world_size: int
    micro_batch: int
    steps: int
    workers: int = 2

    @property
    def readers_per_rank(self) -> int:
        """Processes that read, of each rank."""
        return max(1, self.workers)

    @property
    def ticks_per_step(self) -> int:
        """Micro-batches of a rank in one step."""
        return micro_batches_per_step(self.layout.global_batch, self.world_size, self.micro_batch)

    @property
    def ticks(self) -> int:
        """Micro-batches of a rank in the whole piece."""
        return self.steps * self.ticks_per_step

    def lanes(self, rank: int) -> range:
        """Returns the lanes of a rank."""
        return lanes_of_rank(self.layout.lanes, rank, self.world_size)

    def prefetched_lanes(self, rank: int, worker: int) -> tuple[int, ...]:
        """Returns the lanes that a worker prefetches for; the workers of a rank share its lanes."""
        return tuple(self.lanes(rank))[worker :: self.readers_per_rank]


@dataclass(frozen=True)
class Mark:
    """An action of a reader at `tick`: it closes the shards `closes`, then opens `opens` (-1: none)."""

    tick: int
    opens: int
    closes: tuple[int, ...] = ()


def marks_of_rank(run: Run, rank: int, orders: EpochOrders) -> list[list[Mark]]:
    """Returns the marks of every worker of a rank, in order."""
    steps_per_epoch, marks = run.layout.steps_per_epoch, [[] for _ in range(run.readers_per_rank)]  # type: ignore[var-annotated]
    for first_step in range(0, run.steps, steps_per_epoch):
        order, _ = orders.at(first_step)
        last_step = min(first_step + steps_per_epoch, run.steps)
        for row, lane in enumerate(run.lanes(rank)):
            spans = _spans(order, lane, last_step - first_step)
            for worker, own in enumerate(marks):
                own += _marks_of_lane(run, (order, lane, row), worker, first_step=first_step, spans=spans)
    for own in marks:
        own.sort(key=lambda mark: (mark.tick, mark.opens >= 0))
    return marks


def _spans(order: EpochOrder, lane: int, steps: int) -> list[tuple[int, int]]:
    """Returns [first, last) of each window of a lane within the steps, in items from the lane's start."""
    lane_first, _ = order.lane_range(lane)
    last = steps * order.layout.items_per_lane_step
    spans, window = [], order.window(0, lane)
    while True:
        spans.append((window.first_item - lane_first, min(window.last_item - lane_first, last)))
        following = order.next_window(window)
        if following is None or following.first_item - lane_first >= last:
            return spans
        window = following


def _marks_of_lane(
    run: Run, where: tuple[EpochOrder, int, int], worker: int, *, first_step: int, spans: list[tuple[int, int]]
) -> Iterator[Mark]:
    order, lane, row = where
    size, readers = run.layout.items_per_lane_step, run.readers_per_rank
    for span_first, last in spans:
        position = np.arange(span_first, last)
        tick = (first_step + position // size) * run.ticks_per_step
        tick += (row * size + position % size) // run.micro_batch
        mine = tick % readers == worker
        shards, at = np.unique(order.lane_items(lane, span_first, last).shard[mine], return_index=True)
        for shard, first in sorted(zip(shards.tolist(), at.tolist()), key=lambda pair: pair[1]):
            yield Mark(int(tick[mine][first]), shard)
        # a step closes the windows that are over when it begins: see data.stream.source.SampleSource._enter
        over = (first_step - (-last // size)) * run.ticks_per_step
        yield Mark(over + (worker - over) % readers, -1, tuple(shards.tolist()))


class Upcoming:
    """Shards that a prefetcher wants next; recomputed only when a window of its lanes changes."""

    def __init__(self, run: Run, orders: EpochOrders, lanes: tuple[int, ...], *, depth_bytes: int):
        self._run, self._orders, self._lanes, self._depth_bytes = run, orders, lanes, depth_bytes
        self._key: tuple[int, ...] = ()
        self._shards: list[int] = []

    def at(self, step: int) -> list[int]:
        """Returns the shards that are needed after `step`, the soonest first."""
        step = min(step, self._run.steps - 1)
        order, step_of_epoch = self._orders.at(step)
        key = (order.epoch, *(order.window(step_of_epoch, lane).index for lane in self._lanes))
        if key != self._key:
            self._key = key
            per_step = self._run.layout.items_per_lane_step
            rounds = upcoming_shards(
                self._run.layout,
                dict.fromkeys(self._lanes, step * per_step),
                order_of=self._orders.of_epoch,
                end=self._run.steps * per_step,
            )
            self._shards = list(within_depth(rounds, self._run.shard_bytes, self._depth_bytes))
        return self._shards
