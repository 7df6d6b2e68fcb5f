"""The lanes of a rank, and the micro-batches of its part of a global batch."""

from data.order.layout import OrderError, largest_divisor, next_multiple


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
