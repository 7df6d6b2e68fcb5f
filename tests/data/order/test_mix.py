"""A mix of corpora, in integers: shares are exact to the item, and each corpus keeps its own order."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order.epoch import EpochOrder
from data.order.layout import Layout, OrderError, lanes_of_rank
from data.order.mix import Draw, Mix, MixOrder
from data.stream.config import whole_parts

EXAMPLES = settings(max_examples=40, deadline=None)
Row = tuple[int, int, int, int, int]


def layout_of(number: int, samples_per_shard, lanes: int, *, global_batch: int | None = None, crops: int = 1) -> Layout:
    return Layout(f"corpus {number}", tuple(samples_per_shard), 5, lanes, global_batch or lanes, 2, crops)


@st.composite
def mixes(draw) -> Mix:
    lanes = draw(st.sampled_from([1, 2, 4, 8]))
    corpora = draw(st.integers(2, 4))
    crops = draw(st.integers(1, 2))
    layouts = []
    for number in range(corpora):
        shards = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
        if sum(shards) * crops < lanes:
            shards.append(lanes)
        layouts.append(layout_of(number, shards, lanes, crops=crops))
    parts = tuple(draw(st.integers(1, 12)) for _ in range(corpora))
    return Mix(tuple(layouts), parts, lanes * draw(st.integers(1, 4)))


def row(draw: Draw) -> Row:
    return draw.corpus, draw.epoch, draw.shard, draw.sample_of_shard, draw.draw


def batch_rows(order: MixOrder, step: int, world_size: int = 1) -> Counter[Row]:
    lanes = order.mix.lanes
    parts = [order.step_draws(step, lanes_of_rank(lanes, rank, world_size)) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1, "each rank gives equally many"
    in_pieces = [
        order.step_draws(step, lanes_of_rank(lanes, 0, world_size), range(n, n + 1)) for n in range(len(parts[0]))
    ]
    assert [draw for piece in in_pieces for draw in piece] == parts[0], "any rows can be asked for alone"
    return Counter(row(draw) for part in parts for draw in part)


@EXAMPLES
@given(mixes(), st.integers(0, 2000))
def test_each_lane_is_within_one_item_for_each_halving(mix, items):
    """Of the first n items of any lane, each corpus has its share to within ceil(log2 corpora) items; they add to n."""
    bound = math.ceil(math.log2(len(mix.parts)))
    for lane in range(mix.lanes):
        counts = mix.taken(lane, items)
        assert sum(counts) == items
        for count, part in zip(counts, mix.parts):
            assert abs(count - items * part / sum(mix.parts)) < bound


@EXAMPLES
@given(st.integers(1, 64), st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 10**7))
def test_two_corpora_are_within_half_an_item_over_all_lanes(lanes, first, second, step):
    """After any number of steps, over all lanes together; and at every weight."""
    mix = Mix(tuple(layout_of(number, [lanes], lanes) for number in range(2)), (first, second), lanes)
    exact = step * lanes * first / (first + second)
    assert abs(mix.taken_by_all(step)[0] - exact) <= 0.5 + 1e-9 * exact


@pytest.mark.parametrize("parts", [(1, 1, 1), (8, 1, 1), (1, 2, 3, 4), (97, 1, 1, 1)])
@pytest.mark.parametrize("lanes", [1, 8, 64])
def test_up_to_four_corpora_stay_within_two_items_over_all_lanes(parts, lanes):
    """The errors of the halvings do not add up over lanes: 64 of them are within two items of the exact shares."""
    mix = Mix(tuple(layout_of(number, [lanes], lanes) for number in range(len(parts))), parts, lanes)
    for step in [*range(200), 10**6 + 1, 10**9 + 7]:
        for count, part in zip(mix.taken_by_all(step), parts):
            assert abs(count - step * lanes * part / sum(parts)) <= 2


def test_a_batch_of_one_item_a_lane_holds_all_corpora():
    """Lanes do not turn to one corpus at the same moment: each batch of 64 has 48 : 16 within one item."""
    mix = Mix(tuple(layout_of(number, [64] * 4, 64) for number in range(2)), (3, 1), 64)
    order = MixOrder(mix)
    for step in range(20):
        of_corpus = Counter(draw.corpus for draw in order.step_draws(step, range(64)))
        assert abs(of_corpus[0] - 48) <= 1


@EXAMPLES
@given(mixes(), st.data())
def test_a_lane_gives_each_corpus_in_the_order_it_has_alone(mix, data):
    """Separated by corpus, a lane's draws are its runs of the corpus's own epochs, in order."""
    lane = data.draw(st.integers(0, mix.lanes - 1))
    order, steps = MixOrder(mix), 12
    drawn = [row(draw) for step in range(steps) for draw in order.step_draws(step, [lane])]
    for corpus, layout in enumerate(mix.layouts):
        own = [of_row for of_row in drawn if of_row[0] == corpus]
        alone: list[Row] = []
        epoch = 0
        while len(alone) < len(own):
            items = EpochOrder(layout, epoch).lane_items(lane, 0, layout.items_per_lane_epoch)
            columns = zip(items.shard.tolist(), items.sample_of_shard.tolist(), items.draw.tolist())
            alone += [(corpus, epoch, *column) for column in columns]
            epoch += 1
        assert own == alone[: len(own)]


@EXAMPLES
@given(mixes())
def test_every_item_is_drawn_once_in_each_epoch_of_its_corpus(mix):
    """Epochs finished in all lanes have each item once, except for fewer than `lanes`, which are counted."""
    order, steps = MixOrder(mix), 3 * mix.steps_per_epoch
    drawn: Counter[Row] = Counter()
    for step in range(steps):
        drawn += batch_rows(order, step)
    assert drawn.total() == steps * mix.global_batch
    assert set(drawn.values()) == {1}
    left_out = 0
    for corpus, layout in enumerate(mix.layouts):
        taken = [mix.taken(lane, steps * mix.items_per_lane_step)[corpus] for lane in range(mix.lanes)]
        for epoch in range(min(taken) // layout.items_per_lane_epoch):
            seen = {of_row[2:] for of_row in drawn if of_row[:2] == (corpus, epoch)}
            rest = EpochOrder(layout, epoch).left_out()
            missed = set(zip(rest.shard.tolist(), rest.sample_of_shard.tolist(), rest.draw.tolist()))
            assert len(missed) == layout.num_left_out < mix.lanes
            assert len(seen) + len(missed) == layout.num_items and not seen & missed
            left_out += len(missed)
    assert mix.left_out(steps) == left_out


@EXAMPLES
@given(mixes(), st.integers(0, 40))
def test_any_world_makes_the_same_batch_and_finds_it_at_once(mix, step):
    """Global batch t is the same for worlds 1, 2, 4, 8, and in a fresh order that makes only this batch."""
    expected = batch_rows(MixOrder(mix), step)
    walked = MixOrder(mix)
    for earlier in range(max(0, step - 5), step):
        batch_rows(walked, earlier)
    for world_size in (world for world in (1, 2, 4, 8) if mix.lanes % world == 0):
        assert batch_rows(walked, step, world_size) == expected


def test_a_small_corpus_comes_round_while_a_large_one_is_still_in_its_first_epoch():
    """Each corpus has its own epochs: with equal shares, 20 samples finish five when 400 samples are at a quarter."""
    mix = Mix((layout_of(0, [100] * 4, 4), layout_of(1, [10, 10], 4)), (1, 1), 8)
    epochs = [Counter(), Counter()]
    order = MixOrder(mix)
    for step in range(25):
        for draw in order.step_draws(step, range(4)):
            epochs[draw.corpus][draw.epoch] += 1
    assert epochs[0] == {0: 100}
    assert epochs[1] == {0: 20, 1: 20, 2: 20, 3: 20, 4: 20}
    assert mix.taken_by_all(25) == [100, 100]


@EXAMPLES
@given(mixes(), st.integers(0, 30))
def test_the_shards_in_use_hold_what_comes_next(mix, step):
    """Of each corpus, the current window has the first item that the lane will draw."""
    order = MixOrder(mix)
    for lane in range(mix.lanes):
        in_use = order.shards_in_use(step, [lane])
        first_of_corpus: dict[int, int] = {}
        for later in range(step, step + 15):
            for draw in order.step_draws(later, [lane]):
                first_of_corpus.setdefault(draw.corpus, draw.shard)
        for corpus, shard in first_of_corpus.items():
            assert shard in in_use[corpus]


def test_the_steps_of_a_corpus_go_with_its_lanes():
    """Prefetching of one corpus follows the slowest lane's step, and ends with the fastest lane's."""
    mix = Mix((layout_of(0, [100], 4), layout_of(1, [100], 4)), (2, 1), 8)
    for step in (0, 1, 7, 50):
        taken = [mix.taken(lane, 2 * step)[1] for lane in range(4)]
        assert mix.corpus_steps(1, step, range(4)) == (min(taken), max(taken))
    assert mix.corpus_steps(0, 9, []) == (0, 0)
    alone = Mix((layout_of(0, [64], 4, global_batch=16),), (1,), 16)
    assert alone.corpus_steps(0, 3, range(4)) == (3, 3)


def test_the_order_of_a_mix_is_the_one_of_the_first_release():
    """Golden rows: a change here changes the data of every resumed run."""
    mix = Mix((layout_of(0, [3, 4, 5], 2), layout_of(1, [6, 6], 2), layout_of(2, [4, 4], 2)), (5, 2, 1), 8)
    rows = [row(draw) for draw in MixOrder(mix).step_draws(2, range(2))]
    assert rows[:4] == [(2, 0, 0, 1, 0), (0, 0, 1, 0, 0), (0, 1, 2, 0, 0), (1, 0, 1, 1, 0)]
    assert rows[4:] == [(0, 0, 2, 1, 0), (0, 1, 1, 3, 0), (1, 0, 0, 4, 0), (0, 1, 0, 0, 0)]


def test_weights_are_taken_as_they_are_written():
    """0.7 is seven tenths, not its nearest binary fraction; whole numbers lose their common divisor."""
    assert whole_parts({"a": 0.7, "b": 0.2, "c": 0.1}) == (7, 2, 1)
    assert whole_parts({"a": 30, "b": 10}) == (3, 1)
    assert whole_parts({"a": 1234.5, "b": 0.25}) == (4938, 1)
    assert whole_parts({"a": 1e-9}) == (1,)


def test_a_batch_that_the_lanes_cannot_share_is_refused():
    """The run's global batch must be a multiple of the lanes, independent of the corpora's own."""
    with pytest.raises(OrderError, match=r"global_batch 10 is not a multiple of lanes 4.*use global_batch 12"):
        Mix((layout_of(0, [100], 4), layout_of(1, [100], 4)), (2, 1), 10)
