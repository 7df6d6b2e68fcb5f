"""Several corpora in one stream, in integers only: whose turn it is, and what each corpus gives.

Whose turn: of the first n items of a lane, each corpus has had its share, as exactly as whole items allow. The corpora
are divided in two halves, the first half gets floor(n * share + phase) of the items, and each half is divided again.
Phases lie in (0, 1), evenly spaced over the lanes, so that lanes do not turn to the same corpus at the same moment.
With two corpora, the share over *all* lanes is thereby within half an item at any time (Hermite's identity: the floors
of x + j/L add up to the floor of L*x). A lane alone is within one item for each halving: one for two corpora, two for
up to four. All of this is a formula of (weights, lane, n): nothing is drawn, and any step is found without the ones
before.

What a corpus gives: its own order of `data.order.epoch`, epoch after epoch, as if it were alone. A lane that comes to
the end of its run of a small corpus begins the corpus's next epoch, whatever the others do. So the order of a corpus
knows nothing of the others, each of its samples is drawn once in each of its epochs, and what applies to one corpus
(lanes, ranks, seeking, stand-ins) applies to the mix. A mix of one corpus is that corpus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import gcd
from typing import NamedTuple

from data.order.epoch import EpochOrder, EpochOrders
from data.order.layout import Layout, check_division

# how far the phases of neighbouring lanes lie apart, by depth of the halving, as a share of the lanes: next to each
# other at first, then by irrational numbers, so that the halvings do not go in step
_STRIDES = (0.0, 0.6180339887, 0.4142135624, 0.7320508076, 0.2360679775, 0.6457513111, 0.3166247904)


@dataclass(frozen=True)
class Mix:
    """The corpora of a stream, their shares, and the batches made of them.

    Args:
        layouts: of the corpora, with lanes in common. In a mix of several, `global_batch` is the number of lanes there:
            a corpus leaves out fewer items an epoch than there are lanes.
        parts: shares of the corpora, as whole numbers in proportion.
        global_batch: items of a step.
    """

    layouts: tuple[Layout, ...]
    parts: tuple[int, ...]
    global_batch: int

    def __post_init__(self):
        assert len(self.layouts) == len(self.parts) > 0
        assert min(self.parts) > 0
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
        """Global batches in which as many items are drawn as all corpora have: an epoch of the run."""
        return max(1, sum(layout.num_items for layout in self.layouts) // self.global_batch)

    @cached_property
    def _stride_of_depth(self) -> tuple[int, ...]:
        return tuple(_coprime_near(share * self.lanes, self.lanes) for share in _STRIDES)

    def describe(self) -> str:
        """Returns the numbers that must stay the same when a run is resumed, as short text."""
        one = self.layouts[0]
        return (
            f"lanes={one.lanes} global_batch={self.global_batch} window_shards={one.window_shards} "
            f"crops_per_sample={one.crops_per_sample}"
        )

    def taken(self, lane: int, items: int) -> list[int]:
        """Returns how many of the first `items` items of a lane are of each corpus."""
        counts: list[int] = []
        self._divide(items, lane, range(len(self.parts)), 0, counts)
        return counts

    def taken_by_all(self, step: int) -> list[int]:
        """Returns how many items of each corpus the global batches before `step` hold."""
        counts = [self.taken(lane, step * self.items_per_lane_step) for lane in range(self.lanes)]
        return [sum(of_corpus) for of_corpus in zip(*counts)]

    def left_out(self, step: int) -> int:
        """Returns how many items no batch held, of the epochs that are over at `step` in every lane."""
        counts = [self.taken(lane, step * self.items_per_lane_step) for lane in range(self.lanes)]
        finished = [
            min(of_corpus) // layout.items_per_lane_epoch for layout, of_corpus in zip(self.layouts, zip(*counts))
        ]
        return sum(epochs * layout.num_left_out for layout, epochs in zip(self.layouts, finished))

    def corpus_steps(self, corpus: int, step: int, lanes: Sequence[int]) -> tuple[int, int]:
        """Returns the steps of the corpus's own layout that the hindmost and foremost of its lanes have reached."""
        per_step = self.layouts[corpus].items_per_lane_step
        taken = [self.taken(lane, step * self.items_per_lane_step)[corpus] for lane in lanes] or [0]
        return min(taken) // per_step, -(-max(taken) // per_step)

    def _divide(self, items: int, lane: int, corpora: range, depth: int, counts: list[int]) -> None:
        if len(corpora) == 1:
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
    """One item of a batch: of which corpus, in which of the corpus's epochs, and as in `data.order.epoch.Items`."""

    corpus: int
    epoch: int
    lane: int
    shard: int
    sample_of_shard: int
    draw: int


class MixOrder:
    """What the lanes give to any step of a mix."""

    def __init__(self, mix: Mix):
        self.mix = mix
        self._orders = [EpochOrders(layout) for layout in mix.layouts]

    def epoch_order(self, corpus: int, epoch: int) -> EpochOrder:
        """Returns the order of an epoch of a corpus."""
        return self._orders[corpus].of_epoch(epoch)

    def step_draws(self, step: int, lanes: Sequence[int], rows: range | None = None) -> list[Draw]:
        """Returns the part of global batch `step` that comes from `lanes`, lane after lane; of that, `rows`, or all.

        Args:
            step: counted from the start of training.
        """
        size = self.mix.items_per_lane_step
        rows = range(len(lanes) * size) if rows is None else rows
        draws: list[Draw] = []
        for index in range(rows.start // size, -(-rows.stop // size)):
            first, last = max(rows.start - index * size, 0), min(rows.stop - index * size, size)
            draws += self._lane_draws(lanes[index], step * size + first, step * size + last)
        return draws

    def shards_in_use(self, step: int, lanes: Sequence[int]) -> list[set[int]]:
        """Returns, for each corpus, the shards of the windows that the lanes are in at the beginning of a step."""
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
        counts = [self.mix.taken(lane, items) for items in range(first, last + 1)]
        waiting = [iter(self._corpus_draws(c, lane, *ends)) for c, ends in enumerate(zip(counts[0], counts[-1]))]
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
    """Returns the number nearest to `value`, and at least 1, that has no divisor in common with `lanes`."""
    return next(n for n in sorted(range(1, lanes + 1), key=lambda n: abs(n - value)) if gcd(n, lanes) == 1)
