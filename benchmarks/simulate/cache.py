"""A node's shard cache in the simulation: bytes, pins and eviction as in `data.reading.cache`.

Space is reserved when a download begins. Pinned shards and those being downloaded stay. Prefetching does not evict
prefetched shards that are still unread; a waiting reader does. The least recently used shard is evicted first.
"""

from dataclasses import dataclass, field


@dataclass
class Held:
    """A shard in the cache, or being downloaded into it."""

    size_bytes: int
    arrived: bool = False
    read: bool = False
    pins: int = 0
    used_s: float = 0.0


@dataclass
class NodeCache:
    """The shards of one node."""

    budget_bytes: float
    held: dict[int, Held] = field(default_factory=dict)
    used_bytes: int = 0
    peak_bytes: int = 0

    def reserve(self, shard: int, size_bytes: int, *, ahead: bool) -> bool:
        """Reserves space for a shard before its download; returns False if there is none."""
        lacking = self.used_bytes + size_bytes - self.budget_bytes
        if lacking > 0:
            idle = [
                (held.used_s, other)
                for other, held in self.held.items()
                if held.arrived and not held.pins and (held.read or not ahead)
            ]
            going = []
            for _, other in sorted(idle):
                if lacking <= 0:
                    break
                going.append(other)
                lacking -= self.held[other].size_bytes
            if lacking > 0:
                return False
            for other in going:
                self.used_bytes -= self.held.pop(other).size_bytes
        self.held[shard] = Held(size_bytes)
        self.used_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return True

    def has(self, shard: int) -> bool:
        """Returns True if the shard is here or being downloaded."""
        return shard in self.held

    def arrived(self, shard: int) -> bool:
        """Returns True if the shard can be read."""
        return shard in self.held and self.held[shard].arrived

    def pin(self, shard: int, now_s: float) -> None:
        """Keeps a shard from eviction."""
        held = self.held[shard]
        held.pins, held.read, held.used_s = held.pins + 1, True, now_s

    def unpin(self, shard: int) -> None:
        """Releases a pin."""
        self.held[shard].pins -= 1
