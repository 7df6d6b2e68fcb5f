"""The order of samples, in integers: thousands of ranks and millions of samples are tested on one core."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order.epoch import EpochOrder, Items, concatenate, permutation
from data.order.layout import Layout, OrderError, lanes_of_rank, micro_batches_per_step
from data.order.mix import Mix, MixOrder
from data.stream.source import ReadPlan

EXAMPLES = settings(max_examples=60, deadline=None)


@st.composite
def layouts(draw) -> Layout:
    lanes = draw(st.integers(1, 8))
    global_batch = lanes * draw(st.integers(1, 4))
    crops = draw(st.integers(1, 3))
    shards = draw(st.lists(st.integers(0, 12), min_size=1, max_size=14))
    if sum(shards) * crops < global_batch:
        shards.append(global_batch)
    return Layout(
        manifest_digest=draw(st.text("0123456789abcdef", min_size=4, max_size=4)),
        samples_per_shard=tuple(shards),
        seed=draw(st.integers(0, 2**63)),
        lanes=lanes,
        global_batch=global_batch,
        window_shards=draw(st.integers(1, 5)),
        crops_per_sample=crops,
    )


def rows(items: Items) -> list[tuple[int, int, int]]:
    return list(zip(items.shard.tolist(), items.sample_of_shard.tolist(), items.draw.tolist()))


def all_items(layout: Layout) -> Counter:
    return Counter(
        (shard, sample, draw)
        for shard, num_samples in enumerate(layout.samples_per_shard)
        for sample in range(num_samples)
        for draw in range(layout.crops_per_sample)
    )


def step_items(order: EpochOrder, step: int, lane: int) -> Items:
    """The items that `lane` gives to global batch `step` of the epoch."""
    size = order.layout.items_per_lane_step
    return order.lane_items(lane, step * size, (step + 1) * size)


def rank_items(order: EpochOrder, step: int, lanes: Sequence[int]) -> Items:
    return concatenate([step_items(order, step, lane) for lane in lanes])


def global_batch(order: EpochOrder, step: int, world_size: int = 1) -> Counter:
    lanes = order.layout.lanes
    parts = [rank_items(order, step, lanes_of_rank(lanes, rank, world_size)) for rank in range(world_size)]
    return Counter(rows(concatenate(parts)))


@EXAMPLES
@given(layouts(), st.integers(0, 3))
def test_an_epoch_holds_every_item_once_or_leaves_it_out_and_says_so(layout, epoch):
    """Batches and the left-out rest together are exactly the set; the rest is smaller than one global batch."""
    order = EpochOrder(layout, epoch)
    seen: Counter = Counter()
    for step in range(layout.steps_per_epoch):
        batch = global_batch(order, step)
        assert batch.total() == layout.global_batch
        seen += batch
    left_out = Counter(rows(order.left_out()))
    assert left_out.total() == layout.num_left_out < layout.global_batch
    assert seen + left_out == all_items(layout)


@EXAMPLES
@given(layouts(), st.integers(0, 3), st.data())
def test_any_step_can_be_found_without_the_ones_before(layout, epoch, data):
    """A fresh order gives the same items for one step as a straight walk."""
    step = data.draw(st.integers(0, layout.steps_per_epoch - 1))
    walked = EpochOrder(layout, epoch)
    for earlier in range(step):
        for lane in range(layout.lanes):
            step_items(walked, earlier, lane)
    fresh = EpochOrder(layout, epoch)
    for lane in range(layout.lanes):
        assert rows(step_items(fresh, step, lane)) == rows(step_items(walked, step, lane))


@EXAMPLES
@given(layouts(), st.data())
def test_a_global_batch_does_not_depend_on_the_world(layout, data):
    """Every world size that divides the lanes sees the same samples in global batch t."""
    order = EpochOrder(layout, epoch=1)
    step = data.draw(st.integers(0, layout.steps_per_epoch - 1))
    worlds = [world for world in range(1, layout.lanes + 1) if layout.lanes % world == 0]
    batches = [global_batch(order, step, world) for world in worlds]
    assert all(batch == batches[0] for batch in batches)


@EXAMPLES
@given(layouts())
def test_windows_tile_the_lane_and_hold_at_most_k_shards(layout):
    """Walking `next_window` covers a lane without gap or overlap, and an item never leaves its window."""
    order = EpochOrder(layout, epoch=0)
    for lane in range(layout.lanes):
        first, last = order.lane_range(lane)
        window = order.window(0, lane)
        position, in_order = first, []
        while window is not None:
            assert window.first_item == position
            shards = order.window_shards(window)
            assert len(shards) <= layout.window_shards
            items = order.window_items(window)
            assert set(items.shard.tolist()) <= set(shards)
            in_order += rows(items)
            position, window = window.last_item, order.next_window(window)
        assert position == last
        assert in_order == rows(order.lane_items(lane, 0, last - first))


@EXAMPLES
@given(layouts())
def test_a_shard_is_read_by_one_lane_unless_a_boundary_cuts_it(layout):
    """Over an epoch, lanes share at most lanes - 1 (shard, lane) pairs beyond one lane a shard."""
    order = EpochOrder(layout, epoch=2)
    pairs = set()
    for lane in range(layout.lanes):
        first, last = order.lane_range(lane)
        pairs |= {(shard, lane) for shard in order.lane_items(lane, 0, last - first).shard.tolist()}
    assert len(pairs) - len({shard for shard, _ in pairs}) <= layout.lanes - 1


@EXAMPLES
@given(st.integers(0, 200), st.integers(), st.text(max_size=5))
def test_permutation_is_a_permutation_that_belongs_to_its_key(size, seed, word):
    """Every index once; equal keys give equal permutations."""
    order = permutation(size, seed, word)
    assert sorted(order.tolist()) == list(range(size))
    assert order.tolist() == permutation(size, seed, word).tolist()


def test_the_order_is_the_one_of_the_first_release():
    """Golden rows: a change here changes the data of every resumed run."""
    layout = Layout("digest", (3, 4, 5), seed=7, lanes=2, global_batch=4, window_shards=2)
    assert rows(rank_items(EpochOrder(layout, 0), 0, range(2))) == [(2, 4, 0), (2, 2, 0), (1, 3, 0), (0, 2, 0)]


def test_epochs_seeds_and_sets_differ():
    """Another epoch, seed or manifest digest gives another order, and another rest is left out."""
    layout = Layout("a", (7,) * 30, seed=1, lanes=4, global_batch=32, window_shards=3)
    others = [
        EpochOrder(layout, 1),
        EpochOrder(Layout("a", (7,) * 30, seed=2, lanes=4, global_batch=32, window_shards=3), 0),
        EpochOrder(Layout("b", (7,) * 30, seed=1, lanes=4, global_batch=32, window_shards=3), 0),
    ]
    first = EpochOrder(layout, 0)
    for other in others:
        assert rows(step_items(other, 0, 0)) != rows(step_items(first, 0, 0))
        assert Counter(rows(other.left_out())) != Counter(rows(first.left_out()))


def test_every_sample_is_reached_over_epochs():
    """Each epoch leaves out other samples, so none stays unseen."""
    layout = Layout("a", (5, 6, 4, 7), seed=3, lanes=2, global_batch=16, window_shards=1)
    seen: set = set()
    for epoch in range(20):
        order = EpochOrder(layout, epoch)
        seen |= set(rows(concatenate([step_items(order, 0, lane) for lane in range(2)])))
    assert seen == set(all_items(layout))


def test_crops_of_one_sample_fall_on_different_places():
    """With c crops per sample, its draws 0..c-1 are separate items, spread over the window."""
    layout = Layout("a", (40,) * 4, seed=0, lanes=1, global_batch=4, window_shards=2, crops_per_sample=3)
    order = EpochOrder(layout, 0)
    items = order.lane_items(0, 0, layout.num_items)
    assert Counter(rows(items)) == all_items(layout)
    same_sample_next_to_each_other = np.mean((np.diff(items.shard) == 0) & (np.diff(items.sample_of_shard) == 0))
    assert same_sample_next_to_each_other < 0.1


def test_items_are_mixed_across_the_shards_of_a_window():
    """Each position of a window is about equally likely to have a sample of either shard."""
    layout = Layout("a", (500, 500), seed=0, lanes=1, global_batch=100, window_shards=2)
    for step in range(10):
        shards = step_items(EpochOrder(layout, 0), step, 0).shard
        assert 25 < (shards == 0).sum() < 75


def test_1024_ranks_share_two_million_samples_without_a_hole():
    """1,024 ranks: equal numbers of steps, each sample once, and at most 1,023 shards that two ranks read."""
    ranks, samples_per_shard = 1024, tuple(450 + i % 101 for i in range(4_000))
    layout = Layout("a", samples_per_shard, seed=1, lanes=ranks, global_batch=2 * ranks, window_shards=2)
    order = EpochOrder(layout, epoch=5)
    first_of_shard = np.concatenate([[0], np.cumsum(samples_per_shard)])
    draws_of_sample = np.zeros(layout.num_samples, dtype=np.int8)
    readers_of_shard = np.zeros(len(samples_per_shard), dtype=np.int64)
    for rank in range(ranks):
        (lane,) = lanes_of_rank(layout.lanes, rank, ranks)
        items = order.lane_items(lane, 0, layout.items_per_lane_epoch)
        assert len(items) == 2 * layout.steps_per_epoch
        draws_of_sample[first_of_shard[items.shard] + items.sample_of_shard] += 1
        readers_of_shard[np.unique(items.shard)] += 1
    assert draws_of_sample.max() == 1
    assert (draws_of_sample == 0).sum() == layout.num_left_out < layout.global_batch
    rest = order.left_out()
    assert not draws_of_sample[first_of_shard[rest.shard] + rest.sample_of_shard].any()
    # windows of two shards: none is read by more than two ranks that are neighbours in the order
    assert readers_of_shard.max() <= 2
    assert (readers_of_shard == 2).sum() <= ranks - 1
    assert {micro_batches_per_step(2 * ranks, world, 2) for world in (256, 512, 1024)} == {4, 2, 1}


@pytest.mark.parametrize("ranks", [64, 1024])
def test_seeking_costs_one_window_of_each_lane_served(monkeypatch, ranks):
    """In ten million samples, the last step of a rank needs two shuffles: of the shards, and of one window."""
    sizes: list[int] = []

    def counted(size: int, *key: int | str) -> np.ndarray:
        sizes.append(size)
        return permutation(size, *key)

    monkeypatch.setattr("data.order.epoch.permutation", counted)
    layout = Layout("a", (1000,) * 10_000, seed=1, lanes=ranks, global_batch=4 * ranks, window_shards=8)
    items = rank_items(EpochOrder(layout, epoch=3), layout.steps_per_epoch - 1, lanes_of_rank(ranks, 5, ranks))
    assert len(items) == 4
    assert sizes[0] == 10_000
    assert len(sizes) == 2 and sizes[1] <= 8 * 1000


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_any_world_workers_and_micro_batch_make_the_same_batches_in_the_same_order(world_size, workers, micro_batch):
    """For every combination, the reads of all workers, taken in turn, make up each global batch."""
    layout = Layout("a", (7, 5, 6, 4, 9, 3) * 3, seed=4, lanes=8, global_batch=32, window_shards=2)
    mix = Mix((layout,), (1,), 32)
    first, last = 2, 2 + layout.steps_per_epoch
    whole = []
    for rank in range(world_size):
        lanes = tuple(lanes_of_rank(8, rank, world_size))
        plan = ReadPlan(mix, lanes, micro_batch, first_step=first, last_step=last, num_workers=workers)
        of_worker = [replace(plan, worker=worker).micro_batches() for worker in range(workers)]
        dealt = [place for turn in zip_longest(*of_worker) for place in turn if place is not None]
        per_step = micro_batches_per_step(32, world_size, micro_batch)
        assert dealt == [(step, micro) for step in range(first, last) for micro in range(per_step)]
        parts = [(step, range(micro * micro_batch, (micro + 1) * micro_batch)) for step, micro in dealt]
        whole.append([(step, MixOrder(mix).step_draws(step, lanes, part)) for step, part in parts])
    for step in range(first, last):
        epoch, step_of_epoch = divmod(step, layout.steps_per_epoch)
        read = Counter(draw[3:] for of_rank in whole for s, part in of_rank if s == step for draw in part)
        assert read == global_batch(EpochOrder(layout, epoch), step_of_epoch)


def layout_of(**changes) -> Layout:
    numbers = {"samples_per_shard": (10, 10), "seed": 0, "lanes": 4, "global_batch": 8, "window_shards": 2}
    return Layout("a", **{**numbers, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"global_batch": 10}, r"global_batch 10 is not a multiple of lanes 4.*use global_batch 12 or lanes 2"),
        ({"global_batch": 24}, r"holds 20 samples x 1 crops, fewer than one global batch of 24.*smaller global_batch"),
        ({"lanes": 0}, r"lanes is 0.*use 1 or more"),
        ({"window_shards": 0}, r"window_shards is 0"),
    ],
)
def test_layouts_that_cannot_be_divided_are_refused(changes, message):
    """The message names the numbers, the consequence and a number that works."""
    with pytest.raises(OrderError, match=message):
        layout_of(**changes)


def test_worlds_and_micro_batches_that_do_not_divide_are_refused():
    """Unequal ranks would hang in the next collective, so they are refused before anything starts."""
    with pytest.raises(OrderError, match=r"lanes 4 .* world size 3.* use 2 ranks, or in a new run lanes 6"):
        lanes_of_rank(4, 0, 3)
    with pytest.raises(OrderError, match=r"rank 4 is not in a world of 4"):
        lanes_of_rank(4, 4, 4)
    with pytest.raises(OrderError, match=r"8 over 2 ranks is 4 samples a rank, which micro_batch 3 .* micro_batch 2"):
        micro_batches_per_step(8, 2, 3)


@EXAMPLES
@given(layouts(), st.data())
def test_windows_from_any_one_go_once_around_the_lane(layout, data):
    """The search for a stand-in covers all windows of a lane, the sample's own first."""
    order = EpochOrder(layout, epoch=0)
    lane = data.draw(st.integers(0, layout.lanes - 1))
    start = order.window(data.draw(st.integers(0, layout.steps_per_epoch - 1)), lane)
    around = list(order.windows_from(start))
    assert around[0] == start
    first, last = order.lane_range(lane)
    assert sum(window.last_item - window.first_item for window in around) == last - first
    assert len(set(around)) == len(around)
    (item,) = rows(order.lane_items(lane, 0, 1))
    assert order.window_of_item(lane, *item) == order.window(0, lane)
