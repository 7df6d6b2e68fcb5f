"""A sharded teacher: its blocks are gathered to run, one block ahead, and released afterwards.

DeepSpeed shards only what it trains, so it would keep the teacher whole on every rank. These shards follow stage 3: of
n entries, flattened, rank r of W keeps [r p, (r + 1) p), with p = ceil(n / W). So a rank holds the same entries of
teacher and student, and the average needs no communication. The gathered values are those of a whole teacher, so
features, losses and the average are equal bit for bit.

All ranks must run a sharded stack together: each block's forward pass is a collective operation.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

# attribute of a sharded parameter: the ShardedBlock that gathers it
_UNIT = "_gathered_by"


@dataclass(frozen=True)
class TeacherPart:
    """Entries [first, first + len(values)) of a flattened tensor of `numel`, in this rank's memory."""

    values: Tensor
    first: int
    numel: int

    def of(self, student: Tensor) -> Tensor:
        """Returns the same entries of the student's parameter."""
        if hasattr(student, "ds_tensor"):
            return student.ds_tensor.data[: self.values.numel()]
        return self.cut(student.data)

    def cut(self, whole: Tensor) -> Tensor:
        """Returns the same entries of a whole tensor."""
        return whole.flatten()[self.first : self.first + self.values.numel()]


class ShardedBlock:
    """A block without gradients, whose parameters are gathered to run and empty otherwise."""

    def __init__(self, block: nn.Module, *, rank: int, world_size: int) -> None:
        self._parameters = list(block.parameters())
        self._shapes = [p.shape for p in self._parameters]
        self._world_size = world_size
        self._per_rank = [-(-p.numel() // world_size) for p in self._parameters]
        first = self._parameters[0]
        # one buffer per block, so one collective gathers it; zeros pad a short last shard
        self._own = first.new_zeros(sum(self._per_rank))
        self.parts = [self._cut(p, own, rank) for p, own in zip(self._parameters, self._own.split(self._per_rank))]
        self._on_its_way: tuple[Any, Tensor] | None = None
        for parameter in self._parameters:
            setattr(parameter, _UNIT, self)
        self.release()

    def items(self) -> Iterator[tuple[Tensor, TeacherPart]]:
        """Yields each parameter with this rank's shard of it."""
        yield from zip(self._parameters, self.parts, strict=True)

    def fetch(self) -> None:
        """Starts gathering the block, unless it has started."""
        if self._on_its_way is None:
            whole = self._own.new_empty(self._world_size * self._own.numel())
            self._on_its_way = (dist.all_gather_into_tensor(whole, self._own, async_op=True), whole)

    def take(self, following: "ShardedBlock | None" = None) -> None:
        """Waits for the gathered values and puts them into the parameters; all ranks together.

        Then starts gathering the following block, if there is one.
        """
        self.fetch()
        assert self._on_its_way is not None
        work, whole = self._on_its_way
        self._on_its_way = None
        work.wait()
        # [ranks, entries of a shard] per parameter; flattened, the shards are in order
        by_rank = whole.view(self._world_size, -1).split(self._per_rank, dim=1)
        for parameter, shape, parts in zip(self._parameters, self._shapes, by_rank, strict=True):
            parameter.data = parts.flatten()[: shape.numel()].view(shape)
        if following is not None:
            following.fetch()

    def release(self) -> None:
        """Frees the gathered values."""
        for parameter in self._parameters:
            parameter.data = self._own.new_empty(0)

    def forget(self) -> None:
        """Drops values gathered ahead: the shards are about to change."""
        if self._on_its_way is not None:
            self._on_its_way[0].wait()
            self._on_its_way = None

    def _cut(self, parameter: nn.Parameter, own: Tensor, rank: int) -> TeacherPart:
        numel, size = parameter.numel(), own.numel()
        first = min(rank * size, numel)
        part = TeacherPart(own[: min(size, numel - first)], first, numel)
        part.values.copy_(part.cut(parameter.data))
        return part


def shard_blocks(blocks: Iterable[nn.Module], *, rank: int, world_size: int) -> list[ShardedBlock]:
    """Shards blocks in the order they run; each is gathered while the block before it computes."""
    blocks = list(blocks)
    units = [ShardedBlock(block, rank=rank, world_size=world_size) for block in blocks]
    for number, (block, unit) in enumerate(zip(blocks, units, strict=True)):
        following = units[number + 1] if number + 1 < len(units) else None
        block.register_forward_pre_hook(lambda *_, unit=unit, following=following: unit.take(following))
        block.register_forward_hook(lambda *_, unit=unit: unit.release(), always_call=True)
        block.register_state_dict_pre_hook(_refuse_state_dict)
    return units


@contextmanager
def whole_again(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Gathers the sharded ones of `parameters` inside the block; all ranks together."""
    units = list(dict.fromkeys(getattr(p, _UNIT) for p in parameters if hasattr(p, _UNIT)))
    for unit in units:
        unit.take()
    try:
        yield
    finally:
        for unit in units:
            unit.release()


def full_numel(parameter: Tensor) -> int:
    """Returns the number of entries of a parameter, also if DeepSpeed or this module shards it."""
    unit = getattr(parameter, _UNIT, None)
    if unit is None:
        return getattr(parameter, "ds_numel", parameter.numel())
    return next(part.numel for sharded, part in unit.items() if sharded is parameter)


def _refuse_state_dict(*_: Any) -> None:
    # it would silently hold empty tensors
    raise AssertionError("the blocks of this stack are sharded over the ranks; call Teacher.state() on all ranks")
