"""The source of the `webdataset` pipeline: raw samples in order, with stand-ins for damaged ones.

A damaged sample must not end a run of weeks, nor be lost in silence. It is logged, and another sample of its corpus and
lane replaces it, chosen by a key, so that every world size and worker count chooses the same one. A missing or cut
shard ends the run, and so do too many stand-ins (in `data.stream.stream`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch.utils.data import IterableDataset

from data.order.epoch import permutation
from data.order.mix import Draw, Mix, MixOrder
from data.reading.reader import BadSampleError, RawSample, ShardReader
from data.shards.format import ShardError
from data.stream.batches import SampleDict, SamplePlace
from data.stream.corpora import Corpora

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadPlan:
    """The micro-batches of a worker: every `num_workers`-th of its rank, from `first_step`.

    Args:
        lanes: of the rank.
        last_step: end (exclusive); None reads epoch after epoch.
    """

    mix: Mix
    lanes: tuple[int, ...]
    micro_batch: int
    first_step: int = 0
    last_step: int | None = None
    worker: int = 0
    num_workers: int = 1

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of this rank per step."""
        return len(self.lanes) * self.mix.items_per_lane_step // self.micro_batch

    def micro_batches(self) -> Iterator[tuple[int, int]]:
        """Yields (global step, micro-batch of the step)."""
        position = self.worker  # counts the rank's micro-batches from first_step
        while True:
            steps, micro = divmod(position, self.micro_batches_per_step)
            step = self.first_step + steps
            if self.last_step is not None and step >= self.last_step:
                return
            yield step, micro
            position += self.num_workers


class SampleSource(IterableDataset):
    """Samples {"stored", "uid", "place"} for the rows of the plan's micro-batches.

    Args:
        readers: of the corpora of the plan's mix.
        follow: called with each step before it is read, for prefetching.
    """

    def __init__(
        self,
        corpora: Corpora,
        readers: Sequence[ShardReader],
        plan: ReadPlan,
        *,
        follow: Callable[[int], None] | None = None,
    ):
        super().__init__()
        self.corpora, self.readers, self.plan, self._follow = corpora, readers, plan, follow
        self._order = MixOrder(plan.mix)
        self._damaged: list[str] = []

    def __iter__(self) -> Iterator[SampleDict]:
        entered, mix = -1, self.plan.mix
        for step, micro in self.plan.micro_batches():
            if step != entered:
                entered = step
                self._enter(step)
            rows = range(micro * self.plan.micro_batch, (micro + 1) * self.plan.micro_batch)
            for row, drawn in enumerate(self._order.step_draws(step, self.plan.lanes, rows)):
                epoch_of_run = step // mix.steps_per_epoch
                place = SamplePlace(drawn.epoch, step, micro, row, drawn.draw, drawn.corpus, epoch_of_run)
                yield self._sample(drawn, place)

    def take_damaged(self) -> list[str]:
        """Returns the uids of the damaged draws since the last call."""
        damaged, self._damaged = self._damaged, []
        return damaged

    def _enter(self, step: int) -> None:
        """Starts a step: announces it to prefetching and closes shards of finished windows."""
        if self._follow is not None:
            self._follow(step)
        for reader, shards in zip(self.readers, self._order.shards_in_use(step, self.plan.lanes)):
            reader.keep_only(shards)

    def _sample(self, drawn: Draw, place: SamplePlace) -> SampleDict:
        reader, corpus = self.readers[drawn.corpus], self.corpora.members[drawn.corpus]
        try:
            sample = reader.read_raw(drawn.shard, drawn.sample_of_shard)
        except BadSampleError as error:
            sample, draw = self._stand_in(drawn)
            place = replace(place, draw=draw)
            damaged, stand_in = corpus.uid(error.uid), corpus.uid(sample.uid)
            self._damaged.append(damaged)
            reader.tally.add("stand_ins")
            _LOG.warning("skipping sample %s: %s; %s stands in for it", damaged, error, stand_in)
        return {"stored": sample.stored, "uid": corpus.uid(sample.uid), "place": place}

    def _stand_in(self, drawn: Draw) -> tuple[RawSample, int]:
        """Returns another sample of the lane, with a draw number of its own, so that its crop is a new one.

        It is of the same window, whose shards are open, unless all of the window's samples are damaged.
        """
        layout, reader = self.plan.mix.layouts[drawn.corpus], self.readers[drawn.corpus]
        order = self._order.epoch_order(drawn.corpus, drawn.epoch)
        item = (drawn.shard, drawn.sample_of_shard, drawn.draw)
        for window in order.windows_from(order.window_of_item(drawn.lane, *item)):
            others = order.window_items(window)
            key = (layout.manifest_digest, layout.seed, drawn.epoch, "stand-in", *item)  # without rank and worker
            for row in permutation(len(others), *key):
                try:
                    sample = reader.read_raw(int(others.shard[row]), int(others.sample_of_shard[row]))
                except BadSampleError:
                    continue
                return sample, int(others.draw[row]) + layout.crops_per_sample  # beyond the sample's own draws 0..c-1
        raise ShardError(
            f"all samples of lane {drawn.lane} are damaged, {reader.manifest.shards[drawn.shard].name} the last, "
            "so nothing can stand in for them; restore the shards or run `python -m data build` again"
        )
