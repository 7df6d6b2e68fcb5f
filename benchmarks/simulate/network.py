"""Store and network of the simulation: latencies with tails, and bandwidth shared fairly by flows.

A request has a latency, drawn from (seed, node, shard) alone, so it does not depend on other events. Then its body
flows. Every flow of a node gets the same rate: the minimum of one connection's rate, its share of the node's link, and
its share of the store's total (max-min fair).
"""

import heapq
import math
from dataclasses import dataclass
from random import Random

import numpy as np

from data.store.files import RetryPolicy
from pupujepa.randomness import generator

FOREVER = math.inf


@dataclass(frozen=True)
class Latency:
    """Seconds from a request to the first byte: log-normal, or Pareto with probability `tail_share`.

    median_s, sigma: of the log-normal; sigma 0 is a constant.
    tail_from_s, tail_exponent: least value and exponent of the Pareto tail; below 2 its variance is infinite.
    longest_s: after this time a client gives up and asks again, which costs this time and a new draw.
    """

    median_s: float = 0.0
    sigma: float = 0.0
    tail_share: float = 0.0
    tail_from_s: float = 1.0
    tail_exponent: float = 1.5
    longest_s: float = RetryPolicy.read_timeout_s

    def draw(self, rng: np.random.Generator) -> float:
        """Returns one latency."""
        waited_s = 0.0
        while True:
            if rng.random() < self.tail_share:
                latency_s = self.tail_from_s * (1.0 - rng.random()) ** (-1.0 / self.tail_exponent)
            else:
                latency_s = self.median_s * math.exp(self.sigma * rng.standard_normal())
            if latency_s <= self.longest_s:
                return waited_s + latency_s
            waited_s += self.longest_s


@dataclass(frozen=True)
class StoreModel:
    """Latency and bandwidth of the store.

    latency: of each request.
    connection_bytes_per_s, node_bytes_per_s, total_bytes_per_s: limits of a connection, a node, and all nodes.
    refused_share: of requests that get "slow down"; they retry after the waits of the real policy.
    requests_per_shard: one after the other; the sidecar index, then the shard.
    slow_nodes: how many nodes have a link of `slow_node_bytes_per_s`.
    """

    latency: Latency = Latency()
    connection_bytes_per_s: float = FOREVER
    node_bytes_per_s: float = FOREVER
    total_bytes_per_s: float = FOREVER
    refused_share: float = 0.0
    requests_per_shard: int = 2
    slow_nodes: int = 0
    slow_node_bytes_per_s: float = FOREVER

    def latency_of(self, seed: int, *, node: int, shard: int, fetch: int) -> float:
        """Returns the seconds that all requests of one download wait before bytes flow."""
        rng = generator(seed, "simulated latency", node, shard, fetch)
        jitter, policy = Random(int(rng.integers(2**32))), RetryPolicy()
        total_s = 0.0
        for _ in range(self.requests_per_shard):
            failures = 0
            while self.refused_share and rng.random() < self.refused_share:
                failures += 1
                total_s += self.latency.draw(rng) + policy.wait_s(failures, jitter)
            total_s += self.latency.draw(rng)
        return total_s

    def link_bytes_per_s(self, nodes: int) -> np.ndarray:
        """Returns what the link of every node carries."""
        links = np.full(nodes, self.node_bytes_per_s)
        links[: self.slow_nodes] = min(self.slow_node_bytes_per_s, self.node_bytes_per_s)
        return links


class Network:
    """Flows of bytes; between two changes all flows of a node run at one rate.

    Per node a virtual clock counts the bytes that any of its flows has got since the beginning, so a flow that begins
    at V and has b bytes ends when the clock shows V + b, and a change of rates touches no flow.
    """

    def __init__(self, store: StoreModel, nodes: int):
        self._store, self._links = store, store.link_bytes_per_s(nodes)
        self._clock_bytes = np.zeros(nodes)
        self._rates = np.zeros(nodes)
        self._active = np.zeros(nodes, dtype=np.int64)
        self._due_bytes = np.full(nodes, FOREVER)
        self._ends: list[list[tuple[float, int, object]]] = [[] for _ in range(nodes)]
        self._now_s, self._count = 0.0, 0
        self.busiest_bytes_per_s = 0.0

    def start(self, now_s: float, node: int, *, size_bytes: float, flow: object) -> None:
        """Begins a flow; `flow` is what `finish` returns when it is over."""
        self._advance(now_s)
        self._count += 1
        heapq.heappush(self._ends[node], (self._clock_bytes[node] + size_bytes, self._count, flow))
        self._active[node] += 1
        self._due_bytes[node] = self._ends[node][0][0]
        self._share()

    def next_end(self) -> tuple[float, int]:
        """Returns when the next flow ends and at which node; never, if there is none."""
        if not self._active.any():
            return FOREVER, -1
        missing = np.maximum(self._due_bytes - self._clock_bytes, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            seconds = np.where(np.isinf(self._rates), 0.0, missing / self._rates)
        seconds[self._active == 0] = FOREVER
        node = int(np.argmin(seconds))
        return self._now_s + float(seconds[node]), node

    def finish(self, now_s: float, node: int) -> object:
        """Ends the flow of `node` that is due."""
        self._advance(now_s)
        end_bytes, _, flow = heapq.heappop(self._ends[node])
        # exact: rounding must not put the clock behind the flow that has ended
        self._clock_bytes[node] = max(self._clock_bytes[node], end_bytes)
        self._active[node] -= 1
        self._due_bytes[node] = self._ends[node][0][0] if self._ends[node] else FOREVER
        self._share()
        return flow

    def _advance(self, now_s: float) -> None:
        finite = np.isfinite(self._rates)
        self._clock_bytes[finite] += self._rates[finite] * (now_s - self._now_s)
        self._now_s = now_s

    def _share(self) -> None:
        """Gives every active flow its fair rate."""
        busy = self._active > 0
        own = np.zeros(len(self._active))
        own[busy] = np.minimum(self._store.connection_bytes_per_s, self._links[busy] / self._active[busy])
        if own @ self._active > self._store.total_bytes_per_s:
            own[busy] = np.minimum(own[busy], _fair_share(own[busy], self._active[busy], self._store.total_bytes_per_s))
        self._rates = own
        if busy.any():
            self.busiest_bytes_per_s = max(self.busiest_bytes_per_s, float(own @ self._active))


def _fair_share(wanted: np.ndarray, flows: np.ndarray, total: float) -> float:
    """Returns the rate c for which flows of min(wanted, c) add up to `total`."""
    left, flows_left = total, int(flows.sum())
    for node in np.argsort(wanted):
        if wanted[node] * flows_left >= left:
            return left / flows_left
        left -= wanted[node] * flows[node]
        flows_left -= int(flows[node])
    return FOREVER
