"""Memory of a rank at each moment of a training step, by part, before any of it is allocated.

Activations come from tracing the training step; the rest is arithmetic on the number of parameters, with what DeepSpeed
0.19 allocates beside them: a bucket for the reduction of gradients under stages 2 and 3 (docs/engine.md), flat copies
of the gradients, AdamW's temporary, whole parameters while stage 3 computes.
`python -m benchmarks engine --plan-memory` measures by how much it is off. Not in it: the device's own context, the
communication library's buffers, fragmentation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from distributed.engine import BatchSizes, deepspeed_json
from distributed.experiment import Experiment
from pupujepa.architecture import ModelConfig
from pupujepa.cost import count_parameters
from pupujepa.memory import Memory, memory_per_rank
from pupujepa.model import PupuJEPA
from pupujepa.precision import PRECISIONS
from pupujepa.tracing import StepConfig, StepPeaks, step_peaks

_FLOAT32 = 4
# of DeepSpeed, in entries: a bucket of gradients at stage 0; at most gathered, and never spread under stage 3
_BUCKET, _LIVE, _PERSISTENT, _PREFETCHED = 500_000_000, 1_000_000_000, 100_000, 50_000_000


def plan_memory(
    experiment: Experiment, sizes: BatchSizes, *, world_size: int, on_cpu: bool = False
) -> dict[str, Memory]:
    """Returns the memory of the rank that holds most, by moment of the step: forward, backward, reduce, update.

    Args:
        on_cpu: AdamW is one kernel there, without the temporary of all entries that it needs elsewhere, and gloo
            copies what it gathers.
    """
    peaks = step_peaks(step_config(experiment), crops=sizes.micro_batch)
    return dict(_Ranks(experiment, sizes, world_size, on_cpu).moments(peaks))


def step_config(experiment: Experiment) -> StepConfig:
    """Returns what decides the computation of a training step."""
    return StepConfig(
        experiment.model,
        experiment.masks,
        experiment.objective,
        PRECISIONS.get(experiment.engine.precision, torch.bfloat16),  # "auto" is bf16 on the GPUs that one plans for
        activation_checkpointing=experiment.engine.activation_checkpointing,
    )


@dataclass(frozen=True)
class _Ranks:
    """The shares of one rank, all in bytes of float32."""

    experiment: Experiment
    sizes: BatchSizes
    world_size: int
    on_cpu: bool

    def moments(self, peaks: StepPeaks) -> Iterator[tuple[str, Memory]]:
        """Yields each moment and what is held then."""
        held = self.held
        before = self._gradients_before
        gathered = self._standing_bucket + self._gathered
        yield (
            "forward",
            replace(held, gradients=before, activations=peaks.forward, buffers=gathered + self._gathered_teacher),
        )
        moments = [self._while_gradients_come(alive, done) for alive, done in peaks.backward]
        yield "backward", max(moments, key=lambda memory: memory.total)
        yield "reduce", replace(held, gradients=self._gradients_after, activations=0, buffers=self._reducing)
        yield "update", replace(held, gradients=self._gradients_after, activations=0, buffers=self._updating)

    @cached_property
    def held(self) -> Memory:
        """What lies there all the time: weights, optimiser, teacher."""
        engine = self.experiment.engine
        counts = count_parameters(self.experiment.model)
        held = memory_per_rank(counts, zero_stage=self.stage, ranks=self.world_size, activation_bytes=0)
        teacher = -(-held.teacher // self.world_size) if engine.teacher_is_sharded else held.teacher
        parameters = held.parameters + (self._persistent if self._gathers else 0)
        optimizer = 0 if engine.offload_optimizer else held.optimizer
        return replace(held, parameters=parameters, optimizer=optimizer, teacher=teacher, gradients=0)

    @property
    def stage(self) -> int:
        """ZeRO's."""
        return self.experiment.engine.zero_stage

    @property
    def _accumulates(self) -> bool:
        return self.sizes.accumulation > 1

    @cached_property
    def _zero(self) -> dict[str, Any]:
        experiment = self.experiment
        json = deepspeed_json(experiment.engine, experiment.optimizer, self.sizes, num_trained=sum(self._entries))
        return json["zero_optimization"]

    @cached_property
    def _entries(self) -> list[int]:
        return trained_entries(self.experiment.model)

    @cached_property
    def _all(self) -> int:
        return _FLOAT32 * sum(self._entries)

    @property
    def _own(self) -> int:
        return -(-self._all // self.world_size)

    @property
    def _bucket(self) -> int:
        return _FLOAT32 * self._zero["reduce_bucket_size"]

    @property
    def _standing_bucket(self) -> int:
        """Stage 3's, which is there all the time."""
        return self._bucket if self.stage == 3 else 0

    @property
    def _gathers(self) -> bool:
        """Whether weights are spread and have to be gathered; of a single rank stage 3 uses its part as it is."""
        return self.stage == 3 and self.world_size > 1

    @property
    def _persistent(self) -> int:
        """Small parameters, which stage 3 never lets go once they were gathered."""
        limit = self._zero.get("stage3_param_persistence_threshold", _PERSISTENT)
        return _FLOAT32 * sum(n for n in self._entries if n < limit)

    @property
    def _gathered(self) -> int:
        """What stage 3 holds whole while it computes: all that will be needed again within its reuse distance."""
        if not self._gathers:
            return 0
        limits = ("stage3_max_live_parameters", "stage3_max_reuse_distance")
        spread = self._all - self._persistent
        whole = min(spread, *(_FLOAT32 * self._zero.get(limit, _LIVE) for limit in limits))
        # they are copied out of one flat buffer, into which several are gathered together
        return whole + min(spread, _FLOAT32 * self._zero.get("stage3_prefetch_bucket_size", _PREFETCHED))

    @property
    def _gathered_teacher(self) -> int:
        """The block of a teacher in parts that runs, and the next one."""
        whole = _FLOAT32 * count_parameters(self.experiment.model).encoder
        return 2 * whole // self.experiment.model.depth if self.experiment.engine.teacher_is_sharded else 0

    @property
    def _gradients_before(self) -> int:
        """Gradients that are there before a backward pass: those of earlier micro-batches, and stage 3's own part."""
        if self.stage == 3:
            return self._own
        if not self._accumulates:
            return 0
        return self._all if self.stage < 2 else self._own

    @property
    def _in_buckets(self) -> bool:
        """Whether gradients are copied into a bucket one by one; else they stay where they are until all are there."""
        return self.stage > 0 and self._zero.get("contiguous_gradients", True)

    @property
    def _gradients_after(self) -> int:
        """Gradients that wait for the update."""
        return self._own if self._in_buckets else self._all

    def _while_gradients_come(self, alive: int, done: int) -> Memory:
        """Some gradients are done, and `alive` bytes of activations and temporaries are left."""
        reduced = _FLOAT32 * done
        if not self._in_buckets:
            gradients, buffers = self._all if self._accumulates else reduced, 0
        else:
            # nothing is reduced before a bucket is full; then this rank's part is cut out of it
            parts = self._own if reduced > self._bucket and self.stage < 3 else 0
            gradients = self._gradients_before + parts
            buffers = self._bucket + self._gathered
        return replace(self.held, gradients=gradients, activations=alive, buffers=buffers)

    @property
    def _reducing(self) -> int:
        """A flat copy of what is reduced, beside the bucket; a single rank copies nothing but what is in no bucket."""
        bucket = _FLOAT32 * _BUCKET if self.stage == 0 else self._bucket
        copied = self.world_size > 1 or (self.stage > 0 and not self._in_buckets)
        held = self._bucket if self._in_buckets else 0
        return (min(bucket, self._all) if copied else 0) + held + self._gathered

    @property
    def _updating(self) -> int:
        """The flat gradients of this rank's part and AdamW's temporary; neither where the host updates."""
        if self.experiment.engine.offload_optimizer:
            return self._standing_bucket
        if self.stage == 0:
            return 0 if self.on_cpu else self._all
        temporaries = 0 if self.on_cpu else self._own
        gathers = self._all if self.on_cpu and self.world_size > 1 else 0
        return self._standing_bucket + max(self._own + temporaries, gathers)


def trained_entries(model: ModelConfig) -> list[int]:
    """Returns the number of entries of each trained parameter."""
    with torch.device("meta"):
        built = PupuJEPA(model)
    return [p.numel() for name, p in built.named_parameters() if not name.startswith("teacher.")]
