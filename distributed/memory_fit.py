"""Which settings of the engine fit into a device: the largest micro-batch by ZeRO stage, blocks kept or recomputed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from distributed.engine import MAX_ZERO_STAGE, BatchSizes, batch_sizes
from distributed.experiment import Experiment
from distributed.memory_plan import plan_memory
from pupujepa.memory import Memory

# of the device's memory; the rest is for its context, the communication library and fragmentation
USABLE = 0.9


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch of a setting that fits, 0 for none, and the peak bytes of a rank with it."""

    zero_stage: int
    recomputed: bool
    micro_batch: int
    peak_bytes: int


def peak(experiment: Experiment, sizes: BatchSizes, *, world_size: int) -> tuple[str, Memory]:
    """Returns the moment of a step at which a GPU rank holds most, and what."""
    moments = plan_memory(experiment, sizes, world_size=world_size)
    return max(moments.items(), key=lambda item: item[1].total)


def fits(experiment: Experiment, *, world_size: int, device_bytes: float) -> Iterator[Fit]:
    """Yields what fits for each stage from the given one on, kept and recomputed, the global batch staying as it is."""
    for recomputed in (False, True):
        for stage in range(experiment.engine.zero_stage, MAX_ZERO_STAGE + 1):
            engine = replace(
                experiment.engine,
                zero_stage=stage,
                activation_checkpointing=recomputed,
                # stage 3 gathers its weights block by block, which is not compiled
                compile="none" if stage == MAX_ZERO_STAGE else experiment.engine.compile,
            )
            yield _largest(replace(experiment, engine=engine), world_size=world_size, device_bytes=device_bytes)


def _largest(experiment: Experiment, *, world_size: int, device_bytes: float) -> Fit:
    engine = experiment.engine
    per_rank = experiment.stream.global_batch // world_size
    total = 0
    for micro_batch in (d for d in range(per_rank, 0, -1) if per_rank % d == 0):
        sizes = batch_sizes(experiment.stream.global_batch, micro_batch=micro_batch, world_size=world_size)
        total = peak(experiment, sizes, world_size=world_size)[1].total
        if total <= USABLE * device_bytes:
            return Fit(engine.zero_stage, engine.activation_checkpointing, micro_batch, total)
    return Fit(engine.zero_stage, engine.activation_checkpointing, 0, total)
