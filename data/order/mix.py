"""The order of several corpora in one stream, in integers only.

The turn: among the first n items of a lane, each corpus has its share, as exactly as whole items allow. The corpora are
split in two halves, the first half gets floor(n * share + phase) of the items, and each half is split again. The phases
are evenly spaced in (0, 1) over the lanes, so that lanes do not turn to one corpus at the same moment. With two
corpora, the share over *all* lanes is then within half an item at any time (Hermite's identity: the floors of x + j/L
sum to the floor of L*x). One lane is within one item per halving. It is a formula of (weights, lane, n): nothing is
drawn, and no step needs the steps before it.

The items: each corpus follows its own order of `data.order.epoch`, epoch after epoch, as if it were alone. A lane at
the end of its run of a small corpus begins the corpus's next epoch, regardless of the other lanes. So each sample is
drawn once per epoch of its corpus, and lanes, ranks, seeking and stand-ins work as for one corpus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import gcd
from typing import NamedTuple

from data.order.epoch import EpochOrder, EpochOrders
from data.order.layout import Layout, check_division

# distance between the phases of neighbouring lanes by depth of the halving, as a share of the lanes: adjacent at first,
# then irrational, so that the halvings do not run in step
_STRIDES = (0.0, 0.6180339887, 0.4142135624, 0.7320508076, 0.2360679775, 0.6457513111, 0.3166247904)


@dataclass(frozen=True)
class Mix:
    """The corpora of a stream and their shares.

    Args:
        layouts: of the corpora, with equal lanes. Of several corpora, each layout's `global_batch` is the number of
            lanes, so that a corpus leaves out fewer items than lanes per epoch.
        parts: shares of the corpora, as whole numbers.
        global_batch: items of a step.
    """

    layouts: tuple[Layout, ...]
    parts: tuple[int, ...]
    global_batch: int

    def __post_init__(self):
        assert len(self.layouts) == len(self.parts) > 0
        assert min(self.parts) > 0
        # see `layouts`
        assert len(self.layouts) == 1 or all(layout.global_batch == layout.lanes for layout in self.layouts)
        check_division(self.global_batch, self.lanes)

    @property
    def lanes(self) -> int:
        """Lanes of each corpus and of the mix."""
        return self.layouts[0].lanes

    @property
    def items_per_lane_step(self) -> int:
        """Items that each lane gives to each global batch."""
        return self.global_batch // self.lanes

    @cached_property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch of the run, which draws as many items as all corpora have."""
        return max(1, sum(layout.num_items for layout in self.layouts) // self.global_batch)

    @cached_property
    def _stride_of_depth(self) -> tuple[int, ...]:
        return tuple(_coprime_near(share * self.lanes, self.lanes) for share in _STRIDES)

    def describe(self) -> str:
        """Returns, as short text, the numbers that a resumed run must keep."""
        one = self.layouts[0]
        return (
            f"lanes={one.lanes} global_batch={self.global_batch} window_shards={one.window_shards} "
            f"crops_per_sample={one.crops_per_sample}"
        )

    def taken(self, lane: int, items: int) -> list[int]:
        """Returns the count of each corpus among the first `items` items of a lane."""
        counts: list[int] = []
        self._divide(items, lane, range(len(self.parts)), 0, counts)
        return counts

    def taken_by_all(self, step: int) -> list[int]:
        """Returns the items of each corpus in the global batches before `step`."""
        counts = [self.taken(lane, step * self.items_per_lane_step) for lane in range(self.lanes)]
        return [sum(of_corpus) for of_corpus in zip(*counts)]

    def left_out(self, step: int) -> int:
        """Returns the number of items left out of all epochs that every lane has finished at `step`."""
        counts = [self.taken(lane, step * self.items_per_lane_step) for lane in range(self.lanes)]
        finished = [
            # slowest lane
            min(of_corpus) // layout.items_per_lane_epoch
            for layout, of_corpus in zip(self.layouts, zip(*counts))
        ]
        return sum(epochs * layout.num_left_out for layout, epochs in zip(self.layouts, finished))

    def corpus_steps(self, corpus: int, step: int, lanes: Sequence[int]) -> tuple[int, int]:
        """Returns (slowest, fastest) lane position of a corpus, in steps of its own layout."""
        per_step = self.layouts[corpus].items_per_lane_step
        taken = [self.taken(lane, step * self.items_per_lane_step)[corpus] for lane in lanes] or [0]
        return min(taken) // per_step, -(-max(taken) // per_step)  # floor and ceiling

    def _divide(self, items: int, lane: int, corpora: range, depth: int, counts: list[int]) -> None:
        if len(corpora) == 1:  # nothing left to halve
            counts.append(items)
            return
        first, second = corpora[: len(corpora) // 2], corpora[len(corpora) // 2 :]
        part, whole = sum(self.parts[c] for c in first), sum(self.parts[c] for c in corpora)
        # floor(items * part / whole + (j + 1/2) / lanes), in whole numbers
        j = lane * self._stride_of_depth[depth % len(_STRIDES)] % self.lanes
        of_first = (2 * items * part * self.lanes + (2 * j + 1) * whole) // (2 * whole * self.lanes)
        self._divide(of_first, lane, first, depth + 1, counts)
        self._divide(items - of_first, lane, second, depth + 1, counts)


class Draw(NamedTuple):
    """One item of a batch: its corpus, that corpus's epoch, and the columns of `data.order.epoch.Items`."""

    corpus: int
    epoch: int
    lane: int
    shard: int
    sample_of_shard: int
    draw: int


class MixOrder:
    """The items of any step of a mix."""

    def __init__(self, mix: Mix):
        self.mix = mix
        self._orders = [EpochOrders(layout) for layout in mix.layouts]

    def epoch_order(self, corpus: int, epoch: int) -> EpochOrder:
        """Returns the order of an epoch of a corpus."""
        return self._orders[corpus].of_epoch(epoch)

    def step_draws(self, step: int, lanes: Sequence[int], rows: range | None = None) -> list[Draw]:
        """Returns `rows` (default: all) of the items of `lanes` in global batch `step`, lane after lane.

        step counts from the start of training.
        """
        size = self.mix.items_per_lane_step
        rows = range(len(lanes) * size) if rows is None else rows
        draws: list[Draw] = []
        for index in range(rows.start // size, -(-rows.stop // size)):  # only the lanes that `rows` touches
            first, last = max(rows.start - index * size, 0), min(rows.stop - index * size, size)
            draws += self._lane_draws(lanes[index], step * size + first, step * size + last)
        return draws

    def shards_in_use(self, step: int, lanes: Sequence[int]) -> list[set[int]]:
        """Returns, for each corpus, the shards of the lanes' windows at the start of a step."""
        in_use: list[set[int]] = [set() for _ in self.mix.layouts]
        for lane in lanes:
            for corpus, taken in enumerate(self.mix.taken(lane, step * self.mix.items_per_lane_step)):
                epoch, position = divmod(taken, self.mix.layouts[corpus].items_per_lane_epoch)
                order = self.epoch_order(corpus, epoch)
                in_use[corpus].update(order.window_shards(order.window_of_position(position, lane)))
        return in_use

    def _lane_draws(self, lane: int, first: int, last: int) -> list[Draw]:
        """Returns items [first, last) of a lane, counted from the start of training."""
        if len(self._orders) == 1:
            return self._corpus_draws(0, lane, first, last)
        counts = [self.mix.taken(lane, items) for items in range(first, last + 1)]  # before each item, and at the end
        waiting = [iter(self._corpus_draws(c, lane, *ends)) for c, ends in enumerate(zip(counts[0], counts[-1]))]
        # one per item
        turns = [c for before, after in pairwise(counts) for c in range(len(before)) if after[c] > before[c]]
        return [next(waiting[corpus]) for corpus in turns]

    def _corpus_draws(self, corpus: int, lane: int, first: int, last: int) -> list[Draw]:
        """Returns items [first, last) of a lane of a corpus, counted from the start of training."""
        per_epoch = self.mix.layouts[corpus].items_per_lane_epoch
        draws: list[Draw] = []
        while first < last:
            epoch, position = divmod(first, per_epoch)
            stop = min(last, (epoch + 1) * per_epoch)
            items = self.epoch_order(corpus, epoch).lane_items(lane, position, position + stop - first)
            columns = zip(items.shard.tolist(), items.sample_of_shard.tolist(), items.draw.tolist())
            draws += [Draw(corpus, epoch, lane, *column) for column in columns]
            first = stop
        return draws


def _coprime_near(value: float, lanes: int) -> int:
    """Returns the number in [1, lanes] nearest to `value` that is coprime to `lanes`."""
    return next(n for n in sorted(range(1, lanes + 1), key=lambda n: abs(n - value)) if gcd(n, lanes) == 1)
