"""The numbers that determine the order of samples, and their checks.

Vocabulary: `num_x` counts, `x_per_y` is a ratio, `x_of_y` is an index or value of x for each y. An *item* is one draw
of one sample; a sample has `crops_per_sample` items.
"""

from dataclasses import dataclass
from functools import cached_property

from pupujepa.errors import UserError


class OrderError(UserError):
    """Sizes that do not divide among lanes, ranks or micro-batches."""


@dataclass(frozen=True)
class Layout:
    """Settings of the order, besides the epoch. Equal layouts give equal global batches.

    Raises:
        OrderError: a count below 1, lanes that do not divide the global batch, or fewer items than one batch.
    """

    manifest_digest: str
    samples_per_shard: tuple[int, ...]
    seed: int
    lanes: int
    global_batch: int
    window_shards: int
    crops_per_sample: int = 1

    def __post_init__(self):
        for name in ("lanes", "global_batch", "window_shards", "crops_per_sample"):
            if getattr(self, name) < 1:
                raise OrderError(f"{name} is {getattr(self, name)}, so no batch can be made; use 1 or more")
        check_division(self.global_batch, self.lanes)
        if self.num_items < self.global_batch:
            raise OrderError(
                f"the set holds {self.num_samples} samples x {self.crops_per_sample} crops, fewer than one global "
                f"batch of {self.global_batch}, so an epoch would have no step; use a smaller global_batch or more data"
            )

    @cached_property
    def num_samples(self) -> int:
        """Samples of the whole set."""
        return sum(self.samples_per_shard)

    @property
    def num_items(self) -> int:
        """Draws of one epoch, including those left out."""
        return self.num_samples * self.crops_per_sample

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of one epoch; the same number on every rank."""
        return self.num_items // self.global_batch

    @property
    def items_per_lane_step(self) -> int:
        """Items that each lane gives to each global batch."""
        return self.global_batch // self.lanes

    @property
    def items_per_lane_epoch(self) -> int:
        """Items that each lane gives in an epoch; the rest of the lane is left out."""
        return self.steps_per_epoch * self.items_per_lane_step  # at most num_items // lanes

    @property
    def num_left_out(self) -> int:
        """Items in no batch of an epoch: fewer than one global batch; the next epoch leaves out others."""
        return self.num_items - self.steps_per_epoch * self.global_batch


def check_division(global_batch: int, lanes: int) -> None:
    """Raises OrderError if the lanes do not divide the global batch."""
    if global_batch % lanes:
        raise OrderError(
            f"global_batch {global_batch} is not a multiple of lanes {lanes}, so lanes cannot give equally many "
            f"samples to a batch; use global_batch {next_multiple(global_batch, lanes)} or lanes "
            f"{largest_divisor(global_batch, lanes)}"
        )


def next_multiple(value: int, of: int) -> int:
    """Returns the smallest multiple of `of` that is at least `value`."""
    return -(-value // of) * of


def largest_divisor(value: int, at_most: int) -> int:
    """Returns the largest divisor of `value` up to `at_most`."""
    return next(d for d in range(max(1, min(value, at_most)), 0, -1) if value % d == 0)


def lanes_of_rank(lanes: int, rank: int, world_size: int) -> range:
    """Returns the lanes r, r + W, r + 2W, ... that rank r of W serves.

    Raises:
        OrderError: `rank` is not in the world, or the world size does not divide the lanes.
    """
    if not 0 <= rank < world_size:
        raise OrderError(
            f"rank {rank} is not in a world of {world_size}, so it would read another rank's data; fix the launch"
        )
    if lanes % world_size:
        raise OrderError(
            f"lanes {lanes} is not a multiple of the world size {world_size}, so some ranks would make smaller batches "
            f"than others; use {largest_divisor(lanes, world_size)} ranks, or in a new run lanes "
            f"{next_multiple(lanes, world_size)}"
        )
    return range(rank, lanes, world_size)  # strided, so that another world size splits the same lanes


def micro_batches_per_step(global_batch: int, world_size: int, micro_batch: int) -> int:
    """Returns the micro-batches of a rank per step.

    Raises:
        OrderError: the micro-batch does not divide the rank's part of a global batch.
    """
    per_rank = global_batch // world_size
    if micro_batch < 1 or global_batch % world_size or per_rank % micro_batch:
        raise OrderError(
            f"global_batch {global_batch} over {world_size} ranks is {global_batch / world_size:g} samples a rank, "
            f"which micro_batch {micro_batch} does not divide; use micro_batch "
            f"{largest_divisor(max(per_rank, 1), micro_batch)}"
        )
    return per_rank // micro_batch
