"""Counters of one reader: bytes, retries, cache use and replaced samples."""

import threading
from collections import Counter

COUNTED = ("bytes_read", "retries", "cache_hits", "cache_misses", "evictions", "stand_ins", "padded")
"""bytes_read: from the store or local shards. cache_hits, cache_misses: shards opened without and with a download.
evictions: shards removed from the cache. stand_ins: draws whose damaged sample was replaced. padded: samples shorter
than the crop."""


class Tally:
    """Named counts that the reading and prefetching threads share."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """Adds to one of COUNTED."""
        assert name in COUNTED, name
        with self._lock:
            self._counts[name] += amount

    def take(self) -> Counter[str]:
        """Returns the counts since the last `take`."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return taken
