"""A teacher of which every rank keeps a part: its blocks are gathered while they run, one ahead, and let go again.

DeepSpeed shards what it trains, and it does not train the teacher, which would therefore be whole on every rank. Parts
are cut exactly as stage 3 cuts parameters: of a tensor of n entries rank r of W keeps the entries [r p, (r + 1) p) of
the flattened tensor, p = ceil(n / W). So the part that follows a partitioned student lies beside the part it follows,
and the average needs no communication under any stage. What is gathered are the same float32 numbers that a whole
teacher has, so features, losses and the average itself are equal bit for bit.

All ranks must run a sharded stack together: each block's forward pass is a collective operation.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

# on a parameter whose values are spread over the ranks: the unit that can gather them
_UNIT = "_gathered_by"


@dataclass(frozen=True)
class TeacherPart:
    """The entries [first, first + len(values)) of a flattened tensor of `numel`; `values` is this rank's memory."""

    values: Tensor
    first: int
    numel: int

    def of(self, student: Tensor) -> Tensor:
        """Returns the same entries of the student's parameter, without communication."""
        if hasattr(student, "ds_tensor"):
            return student.ds_tensor.data[: self.values.numel()]
        return self.cut(student.data)

    def cut(self, whole: Tensor) -> Tensor:
        """Returns the same entries of a whole tensor [...]."""
        return whole.flatten()[self.first : self.first + self.values.numel()]


class ShardedBlock:
    """One block whose parameters exist only while they are needed.

    Args:
        block: without gradients; its parameters are emptied.
    """

    def __init__(self, block: nn.Module, *, rank: int, world_size: int) -> None:
        self._parameters = list(block.parameters())
        self._shapes = [p.shape for p in self._parameters]
        self._world_size = world_size
        self._per_rank = [-(-p.numel() // world_size) for p in self._parameters]
        first = self._parameters[0]
        # one buffer per block, so that one operation gathers it; a short last part is padded with zeros
        self._own = first.new_zeros(sum(self._per_rank))
        self.parts = [self._cut(p, own, rank) for p, own in zip(self._parameters, self._own.split(self._per_rank))]
        self._on_its_way: tuple[Any, Tensor] | None = None
        for parameter in self._parameters:
            setattr(parameter, _UNIT, self)
        self.release()

    def items(self) -> Iterator[tuple[Tensor, TeacherPart]]:
        """Yields each parameter with this rank's part of it."""
        yield from zip(self._parameters, self.parts, strict=True)

    def fetch(self) -> None:
        """Starts gathering, unless that is under way."""
        if self._on_its_way is None:
            whole = self._own.new_empty(self._world_size * self._own.numel())
            self._on_its_way = (dist.all_gather_into_tensor(whole, self._own, async_op=True), whole)

    def take(self) -> None:
        """Gives the parameters their values; all ranks together."""
        self.fetch()
        assert self._on_its_way is not None
        work, whole = self._on_its_way
        self._on_its_way = None
        work.wait()
        by_rank = whole.view(self._world_size, -1).split(self._per_rank, dim=1)
        for parameter, shape, parts in zip(self._parameters, self._shapes, by_rank, strict=True):
            parameter.data = parts.flatten()[: shape.numel()].view(shape)

    def release(self) -> None:
        """Lets go of the values."""
        for parameter in self._parameters:
            parameter.data = self._own.new_empty(0)

    def forget(self) -> None:
        """Drops what was gathered ahead and not used: the parts are about to change."""
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
    """Shards blocks that run in this order, each gathered while the one before it computes."""
    blocks = list(blocks)
    units = [ShardedBlock(block, rank=rank, world_size=world_size) for block in blocks]
    for number, (block, unit) in enumerate(zip(blocks, units, strict=True)):
        following = units[number + 1] if number + 1 < len(units) else None
        block.register_forward_pre_hook(_taking(unit, following))
        block.register_forward_hook(lambda *_, unit=unit: unit.release(), always_call=True)
        block.register_state_dict_pre_hook(_refuse_state_dict)
    return units


@contextmanager
def whole_again(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Makes the values of sharded parameters among `parameters` readable inside the block; all ranks together."""
    units = list(dict.fromkeys(getattr(p, _UNIT) for p in parameters if hasattr(p, _UNIT)))
    for unit in units:
        unit.take()
    try:
        yield
    finally:
        for unit in units:
            unit.release()


def full_numel(parameter: Tensor) -> int:
    """Number of entries of a parameter, also where DeepSpeed or this module has spread it over the ranks."""
    unit = getattr(parameter, _UNIT, None)
    if unit is None:
        return getattr(parameter, "ds_numel", parameter.numel())
    return next(part.numel for sharded, part in unit.items() if sharded is parameter)


def _refuse_state_dict(*_: Any) -> None:
    # it would hold empty tensors, and say nothing
    raise AssertionError("the blocks of this stack are spread over the ranks; ask Teacher.state(), on all ranks")


def _taking(unit: ShardedBlock, following: ShardedBlock | None) -> Any:
    def hook(*_: Any) -> None:
        unit.take()
        if following is not None:
            following.fetch()

    return hook
