"""The teacher under every ZeRO stage: float32, outside the engine, whole on every rank or sharded.

The teacher averages the student's float32 weights, wherever ZeRO stores them: in the replicated parameters under stages
1 and 2; gathered bucket by bucket, or in the rank's own partition for a sharded teacher (teacher_shards.py), under
stage 3. Writing a partitioned teacher inside a gather fails silently: the teacher never moves. So nothing is written
inside a gather, and the move is measured.

Teacher and student share the patch embedding, which is trained and not averaged, so the teacher does not hold it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from distributed.engine.gather import GATHER_ELEMENTS, full_state, gathered, in_buckets
from distributed.engine.teacher_shards import TeacherPart, shard_blocks
from pupujepa.errors import UserError
from pupujepa.training.ema import update_ema
from pupujepa.training.objective import TrainingStep, teacher_pairs

# sampled entries per tensor, to measure the move
_SAMPLED = 1024
# float32 rounding can hide a smaller move, relative to the weights
_CERTAIN_MOVE = 3e-7


class FrozenTeacherError(UserError):
    """The teacher does not follow the student."""


@dataclass(frozen=True)
class _Piece:
    """One teacher tensor, or this rank's shard of it, with the student's parameter that it follows.

    Attributes:
        values: of the teacher, float32.
        part: position of the values in the whole tensor; None for a whole tensor.
    """

    values: Tensor
    student: Tensor
    part: TeacherPart | None = None

    def sample(self, values: Tensor) -> Tensor:
        """Copies every n-th entry of the whole tensor, however it is sharded."""
        numel, first = (self.part.numel, self.part.first) if self.part else (values.numel(), 0)
        stride = max(1, numel // _SAMPLED)
        return values.detach().flatten()[-first % stride :: stride].clone()


class Teacher:
    """The exponential moving average of the student, in the teacher of a training step.

    Make it before a checkpoint is loaded: it samples the first weights, which depend on the seed only.

    Args:
        rank, world_size: shard every block over so many ranks; the default keeps the whole teacher.
    """

    def __init__(self, step: TrainingStep, *, rank: int = 0, world_size: int = 1):
        self.module = step.teacher.requires_grad_(False).eval()
        blocks = self.module.blocks if world_size > 1 else ()
        self._shards = shard_blocks(blocks, rank=rank, world_size=world_size)
        self._cut = {id(parameter): part for unit in self._shards for parameter, part in unit.items()}
        pairs = [(self._cut.get(id(teacher)), teacher, student) for _, teacher, student in teacher_pairs(step)]
        self._parts = [_Piece(part.values, student, part) for part, _, student in pairs if part]
        self._whole = [_Piece(teacher.data, student) for part, teacher, student in pairs if not part]
        self._first = {id(p): p.sample(p.values) for p in (*self._parts, *self._whole)}

    def follow(self, momentum: float, *, measured: bool = False) -> dict[str, float]:
        """Moves the teacher towards the student; all ranks call it together, after the optimiser step.

        Returns:
            {} or, if `measured`, `teacher/moved`: the length of this move relative to the weights, over as many entries
            of small tensors as of large ones.

        Raises:
            FrozenTeacherError: the teacher did not move; on all ranks.
        """
        for unit in self._shards:
            unit.forget()  # a block gathered ahead would hold values from before the move
        sums = self._no_sums(3)  # of squares: the move made, the move due, the weights
        for row, pieces, sources in self._beside_their_sources():
            before = [p.sample(p.values) for p in pieces] if measured else []
            update_ema([p.values for p in pieces], sources, momentum)
            for piece, source, old in zip(pieces, sources, before):
                due = (1 - momentum) * (piece.sample(source) - old)
                sums[row] += _squares(piece.sample(piece.values) - old, due, old)
        if not measured:
            return {}
        *moves, size = self._over_ranks(sums)
        moved, asked = ((move / size) ** 0.5 for move in moves)
        if asked > _CERTAIN_MOVE and moved < asked / 2:
            raise FrozenTeacherError(
                f"the teacher moved by {moved:.2g} of its weights instead of {asked:.2g}: it is frozen, so its "
                f"features would never improve; install the DeepSpeed release of pyproject.toml, or report a bug"
            )
        return {"teacher/moved": moved}

    def moved(self) -> float:
        """Returns the relative distance from the first weights, over the sampled entries; all ranks together."""
        sums = self._no_sums(2)
        for row, pieces in enumerate((self._parts, self._whole)):
            for piece in pieces:
                first = self._first[id(piece)]
                sums[row] += _squares(piece.sample(piece.values) - first, first)
        apart, size = self._over_ranks(sums)
        return (apart / size) ** 0.5

    def distance_to_student(self) -> float:
        """Returns |teacher - student| / |teacher| over all weights; all ranks call it together."""
        sums = self._no_sums(2)
        for row, pieces, sources in self._beside_their_sources():
            for piece, source in zip(pieces, sources, strict=True):
                sums[row] += _squares(piece.values - source, piece.values)
        apart, size = self._over_ranks(sums)
        return (apart / size) ** 0.5

    def state(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Copies the whole teacher to the CPU, float32, all ranks together; keep=False only takes part."""
        return full_state(self.module, keep=keep)

    def load(self, path: Path) -> None:
        """Loads a file of `state` in place, whatever number of ranks saved it."""
        state = load_file(path)
        for unit in self._shards:
            unit.forget()
        for name, parameter in self.module.named_parameters():
            saved, part = state.pop(name), self._cut.get(id(parameter))
            (part.values if part else parameter.data).copy_(part.cut(saved) if part else saved)
        assert not state, f"{path} holds more than a teacher: {sorted(state)[:3]}"

    def _beside_their_sources(self) -> Iterator[tuple[int, list[_Piece], list[Tensor]]]:
        """Yields (row of the sums, 0 for shards and 1 for the rest; pieces; their entries of the student)."""
        if self._parts:
            yield 0, self._parts, [p.part.of(p.student) for p in self._parts if p.part]
        for bucket in in_buckets([p.student for p in self._whole], GATHER_ELEMENTS):
            pieces = self._whole[bucket]
            with gathered([p.student for p in pieces]) as students:
                yield 1, pieces, [s.data for s in students]

    def _no_sums(self, count: int) -> Tensor:
        """Returns zeros [2, count], for sums over shards, which differ by rank, and over whole tensors."""
        return torch.zeros(2, count, dtype=torch.float64, device=(*self._whole, *self._parts)[0].values.device)

    def _over_ranks(self, sums: Tensor) -> list[float]:
        if self._parts:
            dist.all_reduce(sums[0])
        return sums.sum(0).tolist()


def _squares(*tensors: Tensor) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).double()
