"""The source of the stream's `webdataset` pipeline: raw samples in the order of `data.order`, and their stand-ins.

A damaged sample must not end a run of weeks, nor may it go missing in silence: it is named in the log, and its place is
taken by another sample of the same lane, chosen by its key, so that every world and every worker count chooses the same
one. What ends the run is a missing or cut shard, and (in `data.stream`) too many stand-ins.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch.utils.data import IterableDataset

from data.batches import Place, SampleDict
from data.order import EpochOrders, Items, Layout, permutation, rank_items
from data.reader import BadSampleError, RawSample, ShardReader
from data.shards import ShardError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadPlan:
    """Which micro-batches a worker reads: of all of its rank's from `first_step` on, every `num_workers`-th.

    Args:
        lanes: that the rank serves.
        last_step: where to end (exclusive); None reads epoch after epoch.
    """

    layout: Layout
    lanes: tuple[int, ...]
    micro_batch: int
    first_step: int = 0
    last_step: int | None = None
    worker: int = 0
    num_workers: int = 1

    @property
    def micro_batches_per_step(self) -> int:
        """Of this rank."""
        return len(self.lanes) * self.layout.items_per_lane_step // self.micro_batch

    def micro_batches(self) -> Iterator[tuple[int, int]]:
        """Yields (global step, micro-batch of the step)."""
        position = self.worker
        while True:
            steps, micro = divmod(position, self.micro_batches_per_step)
            step = self.first_step + steps
            if self.last_step is not None and step >= self.last_step:
                return
            yield step, micro
            position += self.num_workers


class SampleSource(IterableDataset):
    """Yields {"__key__", "__url__", "mel.npy", "json", "uid", "place"} for each row of the plan's micro-batches.

    Args:
        follow: told each step before it is read; prefetching hangs on it.
    """

    def __init__(self, reader: ShardReader, plan: ReadPlan, *, follow: Callable[[int], None] | None = None):
        super().__init__()
        self.reader, self.plan, self._follow = reader, plan, follow
        self._orders = EpochOrders(plan.layout)
        self._damaged: list[str] = []

    def __iter__(self) -> Iterator[SampleDict]:
        entered, items = -1, None
        for step, micro in self.plan.micro_batches():
            if step != entered:
                entered, items = step, self._enter(step)
            assert items is not None
            epoch = step // self.plan.layout.steps_per_epoch
            rows = items[micro * self.plan.micro_batch : (micro + 1) * self.plan.micro_batch]
            for row in range(len(rows)):
                yield self._sample(rows[row : row + 1], Place(epoch, step, micro, row, int(rows.draw[row])))

    def take_damaged(self) -> list[str]:
        """Returns the uids of the damaged samples met since the last call, one for each draw."""
        damaged, self._damaged = self._damaged, []
        return damaged

    def _enter(self, step: int) -> Items:
        """Returns the rank's items of the step; lets go of shards whose windows are over."""
        if self._follow is not None:
            self._follow(step)
        order, step_of_epoch = self._orders.at(step)
        items = rank_items(order, step_of_epoch, self.plan.lanes)
        windows = [order.window(step_of_epoch, lane) for lane in self.plan.lanes]
        needed = {shard for window in windows for shard in order.window_shards(window)}
        self.reader.keep_only(needed | set(items.shard.tolist()))
        return items

    def _sample(self, item: Items, place: Place) -> SampleDict:
        shard, sample = int(item.shard[0]), int(item.sample_of_shard[0])
        try:
            return _as_dict(self.reader.read_raw(shard, sample), place)
        except BadSampleError as error:
            stand_in, draw = self._stand_in(item, place)
            self._damaged.append(error.uid)
            self.reader.tally.add("stand_ins")
            _LOG.warning("skipping sample %s: %s; %s stands in for it", error.uid, error, stand_in.uid)
        return _as_dict(stand_in, Place(place.epoch, place.step, place.micro, place.row, draw))

    def _stand_in(self, item: Items, place: Place) -> tuple[RawSample, int]:
        """Returns another sample of the lane, and a draw that is not among its own, so that its crop is another.

        It is of the same window, whose shards are at hand, unless none of the window's samples is whole.
        """
        layout, lane = self.plan.layout, int(item.lane[0])
        order, _ = self._orders.at(place.step)
        key = ("stand-in", int(item.shard[0]), int(item.sample_of_shard[0]), place.draw)
        for window in order.windows_from(order.window_of_item(item)):
            others = order.window_items(window)
            for row in permutation(len(others), layout.manifest_digest, layout.seed, place.epoch, *key):
                try:
                    sample = self.reader.read_raw(int(others.shard[row]), int(others.sample_of_shard[row]))
                except BadSampleError:
                    continue
                return sample, int(others.draw[row]) + layout.crops_per_sample
        raise ShardError(
            f"all samples of lane {lane} are damaged, {self.reader.manifest.shards[int(item.shard[0])].name} the last, "
            "so nothing can stand in for them; restore the shards or run `python -m data build` again"
        )


def _as_dict(sample: RawSample, place: Place) -> SampleDict:
    return {
        "__key__": sample.key,
        "__url__": sample.url,
        "mel.npy": sample.mel_npy,
        "json": sample.json,
        "uid": sample.uid,
        "place": place,
    }
