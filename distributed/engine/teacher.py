"""The teacher under every ZeRO stage: float32, outside the engine's parameters, whole on every rank or in parts.

Its source are the student's full float32 weights after the optimiser step, read where they lie: from the replicated
parameters under stages 1 and 2; under stage 3 gathered bucket by bucket for a whole teacher, and from the rank's own
partition for one in parts (teacher_shards.py). The well-known silent failure, writing a partitioned teacher inside a
gather without a modifier rank so that it never moves, has no place here, since nothing is written inside a gather; and
whether the teacher made the move that the average asks for is measured, not assumed.

The patch embedding is the student's own: shared, trained and without an average. So it is no part of the teacher.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from distributed.engine.gather import full_state, gathered, in_buckets
from distributed.engine.teacher_shards import TeacherPart, shard_blocks
from pupujepa.errors import UserError
from pupujepa.training.ema import update_ema
from pupujepa.training.objective import TrainingStep, teacher_pairs

# entries of each tensor that are looked at, to see whether the teacher moves
_SAMPLED = 1024
# a move that is smaller, relative to the weights, may be lost to float32's rounding
_CERTAIN_MOVE = 3e-7


class FrozenTeacherError(UserError):
    """The teacher does not follow the student."""


@dataclass(frozen=True)
class _Piece:
    """What this rank keeps of one teacher tensor, and the student's parameter that it follows.

    Attributes:
        values: of the teacher, float32.
        part: where the values lie in the whole tensor; None for a whole tensor.
    """

    values: Tensor
    student: Tensor
    part: TeacherPart | None = None

    def sample(self, values: Tensor) -> Tensor:
        """Copies every so many entries, the same of the whole tensor however it is cut."""
        numel, first = (self.part.numel, self.part.first) if self.part else (values.numel(), 0)
        stride = max(1, numel // _SAMPLED)
        return values.detach().flatten()[-first % stride :: stride].clone()


class Teacher:
    """Moves the teacher of a training step.

    Make it before a checkpoint is loaded: it remembers a sample of the first weights, which the seed gives again.

    Args:
        rank, world_size: each of several ranks keeps a part of every block. One rank keeps all.
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
        """Moves towards the student; all ranks call it together, after the optimiser step.

        Args:
            measured: look at what the move did.

        Returns:
            What a row of metrics says about it, or nothing: `teacher/moved` is the length of this one move, relative to
            the weights, both over as many entries of small tensors as of large ones. It is a function of the step
            alone, not of the row before, so a resumed run logs the same.

        Raises:
            FrozenTeacherError: the teacher did not make the move; on all ranks.
        """
        for unit in self._shards:
            unit.forget()
        sums = self._no_sums(3)
        for row, pieces, sources in self._beside_their_sources():
            before = [p.sample(p.values) for p in pieces] if measured else []
            update_ema([p.values for p in pieces], sources, momentum)
            for piece, source, old in zip(pieces, sources, before):
                due = (1 - momentum) * (piece.sample(source) - old)
                sums[row] += _squares(piece.sample(piece.values) - old, due, old)
        return _verdict(*self._over_ranks(sums)) if measured else {}

    def moved(self) -> float:
        """Relative distance from the first weights, over a sample of every tensor's entries; all ranks together."""
        sums = self._no_sums(2)
        for row, pieces in enumerate((self._parts, self._whole)):
            for piece in pieces:
                first = self._first[id(piece)]
                sums[row] += _squares(piece.sample(piece.values) - first, first)
        apart, size = self._over_ranks(sums)
        return (apart / size) ** 0.5

    def distance_to_student(self) -> float:
        """Relative distance |teacher - student| / |teacher| over all weights; all ranks call it together."""
        sums = self._no_sums(2)
        for row, pieces, sources in self._beside_their_sources():
            for piece, source in zip(pieces, sources, strict=True):
                sums[row] += _squares(piece.values - source, piece.values)
        apart, size = self._over_ranks(sums)
        return (apart / size) ** 0.5

    def state(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Copies the whole teacher to the CPU, float32, under the names it has inside its stack; all ranks together.

        Args:
            keep: False takes part in the gathering and returns nothing.
        """
        return full_state(self.module, keep=keep)

    def save(self, path: Path, *, writes: bool = True) -> None:
        """Writes the whole teacher, however it is cut; all ranks together, of which one `writes`."""
        state = self.state(keep=writes)
        if writes:
            save_file(state, path)

    def load(self, path: Path) -> None:
        """Reads what `save` wrote, in place: this rank's parts of it, whatever the ranks that saved it."""
        state = load_file(path)
        for unit in self._shards:
            unit.forget()
        for name, parameter in self.module.named_parameters():
            saved, part = state.pop(name), self._cut.get(id(parameter))
            (part.values if part else parameter.data).copy_(part.cut(saved) if part else saved)
        assert not state, f"{path} holds more than a teacher: {sorted(state)[:3]}"

    def _beside_their_sources(self) -> Iterator[tuple[int, list[_Piece], list[Tensor]]]:
        """Yields pieces with the same entries of the student; 0 goes before those in parts, 1 before whole ones."""
        if self._parts:
            yield 0, self._parts, [p.part.of(p.student) for p in self._parts if p.part]
        for bucket in in_buckets([p.student for p in self._whole]):
            pieces = self._whole[bucket]
            with gathered([p.student for p in pieces]) as students:
                yield 1, pieces, [s.data for s in students]

    def _no_sums(self, count: int) -> Tensor:
        """Zeros [2, count]: sums over parts, which differ by rank, and over whole tensors, which do not."""
        return torch.zeros(2, count, dtype=torch.float64, device=(*self._whole, *self._parts)[0].values.device)

    def _over_ranks(self, sums: Tensor) -> list[float]:
        if self._parts:
            dist.all_reduce(sums[0])
        return sums.sum(0).tolist()


def _squares(*tensors: Tensor) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).double()


def _verdict(moved: float, due: float, size: float) -> dict[str, float]:
    """Takes sums of squares: of the move that was made, of the one that was asked for, and of the weights."""
    moved, due = (moved / size) ** 0.5, (due / size) ** 0.5
    if due > _CERTAIN_MOVE and moved < due / 2:
        raise FrozenTeacherError(
            f"the teacher moved by {moved:.2g} of its weights where the average of the student asks for {due:.2g}: it "
            f"is frozen, and the run would train against features that never improve; this is a fault of the program "
            f"or of a DeepSpeed release that it was not tested with (pyproject.toml says which it was)"
        )
    return {"teacher/moved": moved}
