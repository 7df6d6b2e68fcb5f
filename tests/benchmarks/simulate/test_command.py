"""The simulated stream agrees with known closed forms, and reads shards in the real order."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulate.engine import simulate
from benchmarks.simulate.network import Latency, Network, StoreModel
from benchmarks.simulate.outcome import Site
from benchmarks.simulate.reading import Run, Upcoming, marks_of_rank
from data.order.epoch import EpochOrders
from data.order.layout import Layout
from data.reading.prefetch import upcoming_shards, within_depth
from pupujepa.errors import UserError
from tests.data.order.test_epoch import step_items

SIZE = 1000


def make_run(*, shards=24, samples=40, lanes=2, global_batch=4, window=2, world=1, workers=1, steps=None) -> Run:
    """Returns a run of one epoch, by default with one micro-batch per step."""
    layout = Layout("digest", (samples,) * shards, seed=1, lanes=lanes, global_batch=global_batch, window_shards=window)
    return Run(layout, (SIZE,) * shards, world, global_batch // world, steps or layout.steps_per_epoch, workers)


def constant(latency_s: float, **changes) -> StoreModel:
    return StoreModel(Latency(latency_s), requests_per_shard=1, **changes)


def test_without_latency_nobody_waits():
    """A store without latency and bandwidth limit costs nothing, with and without prefetching."""
    for prefetch_bytes in (0, 10 * SIZE):
        outcome = simulate(make_run(world=2), Site(StoreModel(), tick_s=1.0, prefetch_bytes=prefetch_bytes))
        assert outcome.stall_s.sum() == 0
        assert outcome.wait_share() == 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_bandwidth_below_need_waits_for_the_deficit(share):
    """At a share of the needed bytes per second, the training runs at that share of its speed."""
    run = make_run(shards=400, lanes=1, global_batch=1, window=1)
    needed = SIZE / 40  # a shard lasts 40 ticks of 1 s
    outcome = simulate(run, Site(StoreModel(total_bytes_per_s=share * needed), tick_s=1.0, prefetch_bytes=9 * SIZE))
    assert outcome.wait_share() == pytest.approx(1 - share, abs=0.005)
    assert outcome.busiest_bytes_per_s == pytest.approx(share * needed)


def test_bandwidth_above_need_waits_for_nothing_once_it_runs():
    """With one download at a time, a shard needs 37 s and lasts 40 s, so nothing waits."""
    run = make_run(shards=40, lanes=1, global_batch=1, window=2)
    ahead = {"prefetch_bytes": 4 * SIZE, "tick_s": 1.0}
    outcome = simulate(run, Site(constant(10.0, total_bytes_per_s=1.5 * SIZE / 40), **ahead))
    assert outcome.wait_share(first_tick=80) == 0
    # the reader's own download shares the bandwidth with the first one ahead
    assert outcome.start_s == pytest.approx(10 + 2 * 40 / 1.5)
    # 42 s do not fit into 40: the latency of a single connection is lost bandwidth
    slower = simulate(run, Site(constant(15.0, total_bytes_per_s=1.5 * SIZE / 40), **ahead))
    assert slower.wait_share() == pytest.approx(1 - 40 / (15 + 40 / 1.5), abs=0.01)


def test_without_fetching_ahead_each_shard_costs_its_latency():
    """A reader that is one batch ahead waits for each shard: the latency minus the computation of one batch."""
    run = make_run(shards=12, lanes=1, global_batch=1, window=1)
    outcome = simulate(run, Site(constant(5.0), tick_s=1.0, prefetch_batches=1, prefetch_bytes=0))
    assert outcome.start_s == 5.0
    assert outcome.stall_ticks.tolist() == list(range(0, 480, 40))
    assert outcome.stall_s[1:] == pytest.approx(np.full(11, 4.0))


def test_all_ranks_wait_for_the_slowest():
    """With a step barrier, one node with a slow link sets the speed of all."""
    changes = {"shards": 256, "lanes": 4, "global_batch": 4, "window": 1}
    needed = SIZE / 40  # of each rank
    store = StoreModel(slow_nodes=1, slow_node_bytes_per_s=0.5 * needed)
    site = Site(store, tick_s=1.0, ranks_per_node=1, prefetch_bytes=9 * SIZE)
    alone = simulate(make_run(world=4, **changes), site)
    assert alone.wait_share() == pytest.approx(0.5, abs=0.02)
    even = simulate(make_run(world=4, **changes), replace(site, store=StoreModel()))
    assert even.wait_share() == 0


def test_refused_requests_wait_as_the_policy_says():
    """A refused request takes at least the policy's first wait longer."""
    calm = StoreModel(Latency(0.01), requests_per_shard=1)
    refused = StoreModel(Latency(0.01), requests_per_shard=1, refused_share=0.5)
    extra = [refused.latency_of(0, node=0, shard=s, fetch=0) - calm.latency_of(0, node=0, shard=s, fetch=0)
             for s in range(400)]  # fmt: skip
    assert min(extra) == 0
    assert 0.4 < np.mean(np.asarray(extra) > 0) < 0.6
    assert min(e for e in extra if e > 0) >= 0.1 + 0.01


def test_latency_has_the_median_and_the_tail_that_it_says():
    """The log-normal has its median, the Pareto its tail; a request beyond the limit is sent again."""
    rng = np.random.default_rng(0)
    draws = np.array([Latency(0.1, 0.5).draw(rng) for _ in range(4000)])
    assert np.median(draws) == pytest.approx(0.1, rel=0.05)
    assert np.log(draws).std() == pytest.approx(0.5, rel=0.05)
    tail = np.array([Latency(0.1, 0.5, 1.0, 2.0, 1.5, 1e9).draw(rng) for _ in range(4000)])
    assert tail.min() >= 2.0
    assert np.mean(tail > 4.0) == pytest.approx(2**-1.5, abs=0.03)
    assert max(Latency(0.1, 0.5, 0.5, 2.0, 0.5, 10.0).draw(rng) % 10.0 for _ in range(100)) <= 10.0


def test_flows_share_a_link_and_leave_it_to_each_other():
    """Two bodies of 100 and 300 bytes over 10 bytes/s end after 20 and 40 seconds."""
    network = Network(StoreModel(node_bytes_per_s=10.0), nodes=1)
    network.start(0.0, 0, size_bytes=100, flow="short")
    network.start(0.0, 0, size_bytes=300, flow="long")
    assert network.next_end() == (20.0, 0)
    assert network.finish(20.0, 0) == "short"
    assert network.next_end() == (pytest.approx(40.0), 0)


def test_a_store_that_gives_too_little_gives_everybody_equally():
    """Max-min: a flow that needs less than the fair share gets its need, the others share the rest."""
    store = StoreModel(total_bytes_per_s=90.0, connection_bytes_per_s=50.0, slow_nodes=1, slow_node_bytes_per_s=10.0)
    network = Network(store, nodes=3)
    for node in range(3):
        network.start(0.0, node, size_bytes=400, flow=node)
    assert network.next_end() == (pytest.approx(10.0), 1)  # 10, 40 and 40 bytes/s
    assert network.busiest_bytes_per_s == pytest.approx(90.0)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_shard_is_fetched_once_a_node_and_its_marks_are_the_order(data):
    """Each reader opens a shard once and closes it; only boundaries of lanes make two nodes fetch one shard."""
    lanes = data.draw(st.sampled_from([2, 4, 8]))
    world = data.draw(st.sampled_from([w for w in (1, 2, 4) if lanes % w == 0]))
    run = make_run(shards=data.draw(st.integers(6, 30)), samples=data.draw(st.integers(3, 12)), lanes=lanes,
                   global_batch=lanes * data.draw(st.integers(1, 2)), window=data.draw(st.integers(1, 3)),
                   world=world, workers=data.draw(st.integers(1, 3)))  # fmt: skip
    orders, needed = EpochOrders(run.layout), set()
    order, _ = orders.at(0)
    for rank in range(world):
        steps = [(step, lane) for step in range(run.steps) for lane in run.lanes(rank)]
        of_rank = {int(shard) for step, lane in steps for shard in step_items(order, step, lane).shard}
        marks = marks_of_rank(run, rank, orders)
        assert {m.opens for own in marks for m in own if m.opens >= 0} == of_rank
        for own in marks:
            opened, closed = Counter(m.opens for m in own if m.opens >= 0), Counter(s for m in own for s in m.closes)
            assert opened == closed
        needed |= {(rank, shard) for shard in of_rank}
    outcome = simulate(run, Site(constant(0.5, node_bytes_per_s=1e4), tick_s=0.1, ranks_per_node=1))
    assert outcome.fetches == len(needed)
    assert outcome.repeated <= lanes - 1
    assert outcome.fetched_bytes == SIZE * outcome.fetches


def test_a_reader_opens_a_shard_at_the_micro_batch_that_first_needs_it():
    """The marks equal those of a walk over all items, for two workers and two micro-batches per step."""
    layout = Layout("digest", (9,) * 12, seed=1, lanes=4, global_batch=8, window_shards=2)
    run = Run(layout, (SIZE,) * 12, 2, 2, layout.steps_per_epoch, 2)
    orders = EpochOrders(layout)
    order, _ = orders.at(0)
    first_ticks: dict[tuple[int, int], int] = {}
    for step in range(run.steps):
        shards = [int(s) for lane in run.lanes(1) for s in step_items(order, step, lane).shard]
        for row, shard in enumerate(shards):
            tick = step * 2 + row // 2
            first_ticks.setdefault((tick % 2, shard), tick)
    marks = marks_of_rank(run, 1, orders)
    opened = {(w, m.opens): m.tick for w, own in enumerate(marks) for m in reversed(own) if m.opens >= 0}
    assert opened == first_ticks


@pytest.mark.parametrize("depth", [0, 3 * SIZE, 100 * SIZE])
def test_what_is_fetched_ahead_is_what_the_prefetcher_asks_for(depth):
    """The cached list equals that of the real functions, except for finished shards of the current window."""
    run = make_run(lanes=4, global_batch=8, world=2, shards=30, workers=2)
    orders = EpochOrders(run.layout)
    for worker in range(2):
        lanes = run.prefetched_lanes(1, worker)
        upcoming = Upcoming(run, orders, lanes, depth_bytes=depth)
        for step in range(run.steps):
            positions = dict.fromkeys(lanes, step * 2)
            rounds = upcoming_shards(run.layout, positions, order_of=orders.of_epoch, end=run.steps * 2)
            now = list(within_depth(rounds, run.shard_bytes, depth))
            remembered = upcoming.at(step)
            window = shards_at_hand(orders, step, lanes)
            assert [s for s in remembered if s not in window] == [s for s in now if s not in window]
            assert set(now) <= set(remembered) <= set(now) | window


def shards_at_hand(orders, step, lanes) -> set[int]:
    order, step_of_epoch = orders.at(step)
    return {shard for lane in lanes for shard in order.window_shards(order.window(step_of_epoch, lane))}


def test_a_cache_that_is_too_small_is_named():
    """The simulation stops as the run would; space for one window is enough, but leaves none for prefetching."""
    run = make_run(shards=24, lanes=2, global_batch=2, window=2)
    with pytest.raises(UserError, match=r"cache of 3e\+03 bytes cannot hold the shards"):
        simulate(run, Site(constant(1.0), tick_s=1.0, cache_bytes=3 * SIZE))
    tight = simulate(run, Site(constant(3.0), tick_s=1.0, cache_bytes=5 * SIZE))
    roomy = simulate(run, Site(constant(3.0), tick_s=1.0, cache_bytes=12 * SIZE))
    assert tight.cache_peak_bytes <= 5 * SIZE
    assert tight.wait_share() > roomy.wait_share(first_tick=2) == 0


def test_the_same_seed_gives_the_same_run():
    """Latencies depend on (seed, node, shard), so a run is repeatable, and another seed gives another run."""
    run = make_run(shards=60, lanes=4, global_batch=4, world=4)
    site = Site(StoreModel(Latency(3.0, 1.0, 0.1)), tick_s=0.2, ranks_per_node=2)
    first, again, other = (simulate(run, site, seed=seed) for seed in (0, 0, 1))
    assert first.stall_s.tolist() == again.stall_s.tolist()
    assert first.stall_s.tolist() != other.stall_s.tolist()


def test_two_epochs_read_everything_twice_through_a_small_cache():
    """The second epoch has another order; cached shards are not fetched again."""
    run = make_run(shards=16, lanes=2, global_batch=4, steps=2 * (16 * 40 // 4))
    small = simulate(run, Site(constant(0.0), tick_s=1.0, cache_bytes=8 * SIZE))
    whole = simulate(run, Site(constant(0.0), tick_s=1.0, cache_bytes=100 * SIZE))
    assert whole.fetches == 16
    assert 24 <= small.fetches <= 33
