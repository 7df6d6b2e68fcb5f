"""The teacher under every ZeRO stage: a replicated float32 module outside the engine's parameters.

Its source are the student's full float32 weights after the optimiser step. Under stage 3 they are gathered bucket by
bucket and only read; the well-known silent failure, writing a partitioned teacher inside a gather without a modifier
rank so that it never moves, cannot happen because the teacher is not partitioned.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distributed.engine import gathered, in_buckets
from pupujepa.diagnostics import relative_distance
from pupujepa.ema import update_ema
from pupujepa.objective import TrainingStep, teacher_pairs

# entries of each tensor that are remembered from the start, to see whether the teacher moves
_REMEMBERED = 1024


class Teacher:
    """Moves the teacher of a training step.

    Make it before a checkpoint is loaded: it remembers a sample of the first weights, which the seed gives again.
    """

    def __init__(self, step: TrainingStep):
        self.module = step.teacher.requires_grad_(False).eval()
        pairs = teacher_pairs(step)
        self._teachers: list[Tensor] = [teacher.data for _, teacher, _ in pairs]
        self._students: list[Tensor] = [student for _, _, student in pairs]
        self._buckets = list(in_buckets(self._students))
        self._first = [_sample(t).clone() for t in self._teachers]

    def follow(self, momentum: float) -> None:
        """Moves towards the student; all ranks call it together, after the optimiser step."""
        for bucket in self._buckets:
            with gathered(self._students[bucket]) as students:
                update_ema(self._teachers[bucket], [s.data for s in students], momentum)

    def moved(self) -> float:
        """Relative distance from the first weights, over a sample of every tensor's entries."""
        return float(relative_distance((first, _sample(now)) for first, now in zip(self._first, self._teachers)))

    def distance_to_student(self) -> float:
        """Relative distance |teacher - student| / |teacher| over all weights; all ranks call it together."""
        squares = torch.zeros(2, dtype=torch.float64, device=self._teachers[0].device)
        for bucket in self._buckets:
            with gathered(self._students[bucket]) as students:
                for teacher, student in zip(self._teachers[bucket], students):
                    squares += torch.stack([(teacher - student.data).square().sum(), teacher.square().sum()]).double()
        apart, size = squares.tolist()
        return (apart / size) ** 0.5

    def save(self, path: Path) -> None:
        """Writes the teacher, float32, under the names it has inside its stack."""
        save_file({name: t.detach().cpu().contiguous() for name, t in self.module.state_dict().items()}, path)

    def load(self, path: Path) -> None:
        """Reads what `save` wrote, in place."""
        self.module.load_state_dict(load_file(path))


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // _REMEMBERED)]
