"""The event loop of the simulation: readers, prefetchers and a step that waits for the slowest rank.

Every worker of every rank reads its micro-batches in order and stops at the first shard that its node does not hold.
Beside it runs its prefetcher, one download at a time. A worker is at most `prefetch_batches` of its micro-batches ahead
of the training. All ranks take micro-batch t together and compute for `tick_s`. Real ranks end a step together by an
all-reduce, so they can differ by one step; here they cannot differ, which is conservative. Making a batch from bytes in
the cache takes no time; `docs/scale.md` counts the cores that it needs.
"""

import heapq
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from benchmarks.simulate.cache import NodeCache
from benchmarks.simulate.network import FOREVER, Network
from benchmarks.simulate.outcome import Outcome, Site
from benchmarks.simulate.reading import Mark, Run, Upcoming, marks_of_rank
from data.order.epoch import EpochOrders
from pupujepa.errors import UserError


def simulate(run: Run, site: Site, *, seed: int = 0) -> Outcome:
    """Runs a piece of training.

    Raises:
        UserError: a node's cache cannot hold the shards that its ranks read at a time, so the run would stop.
    """
    return _Simulation(run, site, seed).run()


@dataclass
class _Reader:
    """A worker that makes batches; `at` is its next mark."""

    node: int
    marks: list[Mark]
    prefetcher: "_Prefetcher"
    at: int = 0
    blocked_tick: float = FOREVER

    @property
    def next_tick(self) -> float:
        return self.marks[self.at].tick if self.at < len(self.marks) else FOREVER


@dataclass
class _Prefetcher:
    """A worker's thread that fetches ahead."""

    node: int
    upcoming: Upcoming
    has_lanes: bool
    step: int = 0
    busy: bool = False


@dataclass(frozen=True)
class _Download:
    node: int
    shard: int
    prefetcher: _Prefetcher | None


@dataclass
class _Node:
    cache: NodeCache
    waiting: dict[int, list[_Reader]] = field(default_factory=dict)
    starved: list[_Reader] = field(default_factory=list)
    prefetchers: list[_Prefetcher] = field(default_factory=list)


class _Simulation:
    def __init__(self, run: Run, site: Site, seed: int):
        self.run_, self.site, self.seed = run, site, seed
        nodes = -(-run.world_size // site.ranks_per_node)
        self.network = Network(site.store, nodes)
        self.nodes = [_Node(NodeCache(site.cache_bytes)) for _ in range(nodes)]
        self.events: list[tuple[float, int, object]] = []
        self.order_of_event = count()
        self.fetches: dict[tuple[int, int], int] = {}
        self.fetched_bytes = 0
        # the training: batch `taken - 1` was taken at `taken_at_s`
        self.taken, self.taken_at_s, self.stalled_since_s = 0, 0.0, 0.0
        self.is_stalled = True
        self.step_event = 0
        self.stalls: list[tuple[int, float]] = []
        self.sleeping: list[tuple[int, int, _Reader]] = []
        self.blocked: list[tuple[float, int, _Reader]] = []
        orders = EpochOrders(run.layout)
        self.readers = [
            reader
            for rank in range(run.world_size)
            for reader in self._readers_of_rank(rank, orders, node=rank // site.ranks_per_node)
        ]

    def _readers_of_rank(self, rank: int, orders: EpochOrders, *, node: int) -> list[_Reader]:
        readers = []
        for worker, marks in enumerate(marks_of_rank(self.run_, rank, orders)):
            lanes = self.run_.prefetched_lanes(rank, worker)
            depth_bytes = self.site.prefetch_bytes * len(lanes) // len(self.run_.lanes(rank))
            upcoming = Upcoming(self.run_, orders, lanes, depth_bytes=depth_bytes)
            prefetcher = _Prefetcher(node, upcoming, bool(lanes))
            self.nodes[node].prefetchers.append(prefetcher)
            readers.append(_Reader(node, marks, prefetcher))
        return readers

    def run(self) -> Outcome:
        now_s = 0.0
        for reader in self.readers:
            self._read_on(reader, now_s)
        self._go_on(now_s)
        while self.taken < self.run_.ticks or self.is_stalled:
            flow_s, node = self.network.next_end()
            event_s = self.events[0][0] if self.events else FOREVER
            now_s = min(flow_s, event_s)
            if now_s == FOREVER:
                raise UserError(
                    f"the simulated run stops after {self.taken} of {self.run_.ticks} micro-batches: a node's cache of "
                    f"{self.site.cache_bytes:.3g} bytes cannot hold the shards that its ranks read at a time"
                )
            if flow_s <= event_s:
                self._arrive(self.network.finish(now_s, node), now_s)
            else:
                self._happen(heapq.heappop(self.events)[2], now_s)
        return self._outcome()

    def _happen(self, event: object, now_s: float) -> None:
        if isinstance(event, _Download):
            size = self.run_.shard_bytes[event.shard]
            self.network.start(now_s, event.node, size_bytes=size, flow=event)
        elif event == self.step_event:
            self._take(now_s)

    def _read_on(self, reader: _Reader, now_s: float) -> None:
        """Advances a reader until it lacks a shard or is far enough ahead of the training."""
        node = self.nodes[reader.node]
        ahead = self.run_.readers_per_rank * self.site.prefetch_batches
        released = False
        while reader.at < len(reader.marks):
            mark = reader.marks[reader.at]
            if mark.tick >= self._taken_at(now_s) + ahead:
                heapq.heappush(self.sleeping, (mark.tick - ahead + 1, next(self.order_of_event), reader))
                break
            reader.prefetcher.step = mark.tick // self.run_.ticks_per_step
            for shard in mark.closes:
                node.cache.unpin(shard)
                released = True
            if mark.opens >= 0 and not self._open(reader, mark, now_s):
                break
            reader.at += 1
        if released:
            self._use_room(node, now_s)
        self._fetch_ahead(reader.prefetcher, now_s)

    def _open(self, reader: _Reader, mark: Mark, now_s: float) -> bool:
        """Opens a shard, or lets the reader wait for it."""
        node, shard = self.nodes[reader.node], mark.opens
        if node.cache.arrived(shard):
            node.cache.pin(shard, now_s)
            return True
        reader.blocked_tick = mark.tick
        heapq.heappush(self.blocked, (mark.tick, next(self.order_of_event), reader))
        if node.cache.has(shard) or self._fetch(reader.node, shard, now_s, prefetcher=None):
            node.waiting.setdefault(shard, []).append(reader)
        else:
            node.starved.append(reader)
        return False

    def _use_room(self, node: _Node, now_s: float) -> None:
        """Uses released space: waiting readers first, then prefetchers."""
        starved, node.starved = node.starved, []
        for reader in starved:
            self._unblock(reader, now_s)
        for prefetcher in node.prefetchers:
            self._fetch_ahead(prefetcher, now_s)

    def _unblock(self, reader: _Reader, now_s: float) -> None:
        reader.blocked_tick = FOREVER
        self._read_on(reader, now_s)

    def _fetch_ahead(self, prefetcher: _Prefetcher, now_s: float) -> None:
        if prefetcher.busy or not prefetcher.has_lanes:
            return
        cache = self.nodes[prefetcher.node].cache
        shard = next((s for s in prefetcher.upcoming.at(prefetcher.step) if not cache.has(s)), None)
        if shard is None:
            return
        prefetcher.busy = self._fetch(prefetcher.node, shard, now_s, prefetcher=prefetcher)

    def _fetch(self, node: int, shard: int, now_s: float, *, prefetcher: _Prefetcher | None) -> bool:
        size = self.run_.shard_bytes[shard]
        if not self.nodes[node].cache.reserve(shard, size, ahead=prefetcher is not None):
            return False
        nth = self.fetches.get((node, shard), 0)
        self.fetches[node, shard] = nth + 1
        self.fetched_bytes += size
        latency_s = self.site.store.latency_of(self.seed, node=node, shard=shard, fetch=nth)
        event = (now_s + latency_s, next(self.order_of_event), _Download(node, shard, prefetcher))
        heapq.heappush(self.events, event)
        return True

    def _arrive(self, download: object, now_s: float) -> None:
        assert isinstance(download, _Download)
        node = self.nodes[download.node]
        held = node.cache.held[download.shard]
        held.arrived, held.used_s = True, now_s
        for reader in node.waiting.pop(download.shard, []):
            self._unblock(reader, now_s)
        if download.prefetcher is not None:
            download.prefetcher.busy = False
            self._fetch_ahead(download.prefetcher, now_s)
        self._go_on(now_s)

    def _taken_at(self, now_s: float) -> int:
        """Returns the number of batches that the training has taken at this time."""
        if self.is_stalled or not self.taken:
            return self.taken
        since = int((now_s - self.taken_at_s) / self.site.tick_s + 1e-9) if self.site.tick_s else 0
        return min(self.taken + since, self._stop())

    def _stop(self) -> int:
        """Returns the next batch that the training must check before it takes it."""
        while self.blocked and self.blocked[0][2].blocked_tick != self.blocked[0][0]:
            heapq.heappop(self.blocked)
        blocked = self.blocked[0][0] if self.blocked else FOREVER
        waking = self.sleeping[0][0] - 1 if self.sleeping else FOREVER
        return int(min(blocked, max(waking, self.taken), self.run_.ticks))

    def _go_on(self, now_s: float) -> None:
        """Schedules the next check of the training; called after every change."""
        if self.is_stalled:
            if not self._is_blocked(self.taken):
                self._take(now_s)
            return
        self.step_event = next(self.order_of_event)
        stop_s = self.taken_at_s + self.site.tick_s * (1 + self._stop() - self.taken)
        heapq.heappush(self.events, (max(stop_s, now_s), self.step_event, self.step_event))

    def _is_blocked(self, tick: int) -> bool:
        self._stop()
        return bool(self.blocked) and self.blocked[0][0] <= tick

    def _take(self, now_s: float) -> None:
        """Takes the next batch of the training, or stalls."""
        if not self.is_stalled:
            self.taken = self._stop()
        if self.taken >= self.run_.ticks:
            self.is_stalled = False
            return
        if self._is_blocked(self.taken):
            if not self.is_stalled:
                self.is_stalled, self.stalled_since_s = True, now_s
            return
        if self.is_stalled and now_s > self.stalled_since_s:
            self.stalls.append((self.taken, now_s - self.stalled_since_s))
        self.is_stalled = False
        self.taken, self.taken_at_s = self.taken + 1, now_s
        while self.sleeping and self.sleeping[0][0] <= self.taken:
            self._read_on(heapq.heappop(self.sleeping)[2], now_s)
        self._go_on(now_s)

    def _outcome(self) -> Outcome:
        ticks, seconds = zip(*self.stalls) if self.stalls else ((), ())
        shards = {shard for _, shard in self.fetches}
        return Outcome(
            ticks=self.run_.ticks,
            tick_s=self.site.tick_s,
            stall_ticks=np.asarray(ticks, dtype=np.int64),
            stall_s=np.asarray(seconds, dtype=float),
            fetched_bytes=self.fetched_bytes,
            fetches=sum(self.fetches.values()),
            repeated=sum(self.fetches.values()) - len(shards),
            cache_peak_bytes=max(node.cache.peak_bytes for node in self.nodes),
            busiest_bytes_per_s=self.network.busiest_bytes_per_s,
        )
