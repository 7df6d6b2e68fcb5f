"""Prefetching: the shards needed first come first, up to a depth in bytes."""

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from data.order.epoch import EpochOrder, Layout
from data.reading.cache import ShardCache
from data.reading.prefetch import Prefetcher, upcoming_shards, within_depth
from data.reading.room import CacheConfig
from data.shards.manifest import Manifest
from data.store.files import LocalStore
from pupujepa.errors import UserError
from tests.data.shardsets import build_shard_set

LAYOUT = Layout("digest", (3,) * 5, seed=0, lanes=1, global_batch=1, window_shards=1)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Five shards of about equal size in tmp_path/store."""
    return build_shard_set(str(tmp_path / "store"), (3, 3, 3, 3, 3), num_frames=lambda number: 32)


@pytest.fixture
def make_prefetcher(tmp_path: Path, manifest: Manifest) -> Callable[..., Prefetcher]:
    """Prefetchers of one lane, windows of one shard, into a cache with room for `room` shards."""

    def make(depth: float, room: float = 5) -> Prefetcher:
        size = max(entry.bytes for entry in manifest.shards)
        config = CacheConfig(tmp_path / "cache", int(room * size), patience_s=0.3)
        store = LocalStore(str(tmp_path / "store"), root=tmp_path / "store")
        cache = ShardCache(config, store=store, namespace="set")
        return Prefetcher(cache, manifest, layout=LAYOUT, lanes=[0], depth_bytes=int(depth * size))

    return make


@pytest.fixture
def kept(tmp_path: Path) -> Callable[[], set[str]]:
    """The names of the shards in the cache."""
    return lambda: {path.name for path in (tmp_path / "cache").glob("*/*.tar")}


def coming(manifest: Manifest) -> list[str]:
    """The names of the shards in the order of need."""
    return [manifest.shards[s].name for s in dict.fromkeys(EpochOrder(LAYOUT, 0).lane_items(0, 0, 15).shard.tolist())]


@pytest.mark.parametrize("depth, expected", [(0, 1), (2.5, 3), (100, 5)])
def test_it_goes_as_far_as_its_bytes(make_prefetcher, manifest, kept, depth, expected):
    """The current window, and the shards of the next windows within the depth in bytes, soonest first."""
    prefetcher, tried = make_prefetcher(depth), set()
    for number in range(expected):
        assert prefetcher._fetch_first_lacking(tried)
        assert kept() == set(coming(manifest)[: number + 1])
    assert not prefetcher._fetch_first_lacking(tried)
    assert len(kept()) == expected


def test_it_stops_where_the_cache_is_full(make_prefetcher, manifest, kept):
    """A depth beyond the budget evicts no unread shard, and prefetching resumes after a read."""
    prefetcher, tried = make_prefetcher(100, room=3), set()
    while prefetcher._fetch_first_lacking(tried):
        pass
    assert kept() == set(coming(manifest)[:3])
    prefetcher._cache.open(manifest.shards[EpochOrder(LAYOUT, 0).lane_items(0, 0, 1).shard[0]]).close()
    prefetcher._step = 3
    assert prefetcher._fetch_first_lacking(tried)
    assert kept() == set(coming(manifest)[1:4])


def test_a_thread_fetches_while_the_reader_does_something_else(make_prefetcher, manifest, kept):
    """It starts with the first step and ends at close."""
    with closing(make_prefetcher(100)) as prefetcher:
        prefetcher.follow(0)
        give_up_at = time.monotonic() + 120
        while kept() != set(coming(manifest)):
            assert time.monotonic() < give_up_at, "waited in vain"
            time.sleep(0.02)


def test_a_shard_that_cannot_be_fetched_is_left_to_the_reader(make_prefetcher, manifest, kept, tmp_path):
    """The others come; the reader will report the failure."""
    missing = coming(manifest)[1]
    (tmp_path / "store" / missing).unlink()
    prefetcher, tried = make_prefetcher(100), set()
    while prefetcher._fetch_first_lacking(tried):
        pass
    assert kept() == set(coming(manifest)) - {missing}


def test_a_negative_depth_is_refused(make_prefetcher):
    """The message names the setting."""
    with pytest.raises(UserError, match=r"prefetch_bytes -\d+ is negative"):
        make_prefetcher(-1)


def test_upcoming_shards_come_in_the_order_of_need():
    """First the shards of the current windows, by their next sample, then of the next ones, past the epoch's end."""
    layout = Layout("digest", (4,) * 6, seed=0, lanes=1, global_batch=1, window_shards=3)
    this, following = (EpochOrder(layout, epoch).lane_items(0, 0, 24).shard.tolist() for epoch in (0, 1))

    def rounds(step: int, end: int | None = None) -> list[list[int]]:
        return list(upcoming_shards(layout, {0: step}, order_of=partial(EpochOrder, layout), end=end))

    def windows(sequence: list[int], *cuts: int) -> list[list[int]]:
        return [list(dict.fromkeys(sequence[first:last])) for first, last in pairwise(cuts)]

    for step in (0, 5, 11):
        assert rounds(step) == windows(this, step, 12, 24) + windows(following, 0, 12, 24)
    assert rounds(23) == [[this[23]], *windows(following, 0, 12, 24)]
    assert rounds(25)[0] == windows(following, 1, 12)[0]
    assert rounds(23, end=24) == [[this[23]]], "the run ends there"
    assert rounds(0, end=13) == [*windows(this, 0, 12), [this[12]]]
    assert rounds(0, end=25)[-1] == [following[0]]


def test_upcoming_shards_of_several_lanes_take_turns():
    """Lanes advance together, so the first shard of each comes before the second of any."""
    layout = Layout("digest", (4,) * 8, seed=0, lanes=2, global_batch=2, window_shards=4)
    order = EpochOrder(layout, 0)
    first, second = (list(dict.fromkeys(order.lane_items(lane, 0, 16).shard.tolist())) for lane in (0, 1))
    rounds = upcoming_shards(layout, {0: 0, 1: 0}, order_of=lambda epoch: order)
    assert next(rounds) == [shard for pair in zip(first, second, strict=True) for shard in pair]


def test_the_depth_counts_each_shard_once():
    """A repeated shard counts once; the current windows are not limited."""
    assert list(within_depth([[0, 1], [1, 2], [2, 3], [4]], [10] * 5, 20)) == [0, 1, 2, 3]
    assert list(within_depth([[0, 1], [2]], [10] * 3, 9)) == [0, 1]
