"""The teacher's exponential moving average: its momentum as a pure function of the step, and its update.

The average is kept in float32: at momentum 0.99999 a bf16 teacher rounds every update away.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pupujepa.errors import UserError


@dataclass(frozen=True)
class EmaConfig:
    """Momentum rises linearly from `start` to `end` over the first `ramp_fraction` of the run, then stays.

    reference_steps: 0 takes the momenta as written. A positive number says for which run length they were chosen; the
    averaging horizon 1 / (1 - momentum) is then scaled to the actual length.

    Raises:
        UserError: a momentum or a fraction outside [0, 1], negative steps, or momenta that never move the teacher.
    """

    start: float = 0.99995
    end: float = 0.99999
    ramp_fraction: float = 1.0
    reference_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1 or not 0 <= self.end <= 1:
            raise UserError(f"EMA momenta {self.start} and {self.end} must lie in [0, 1]")
        if self.start == self.end == 1:
            raise UserError(
                "EMA momenta of 1 from start to end keep the teacher at its first, random weights, so that the student "
                "would learn to predict noise; lower ema.start or ema.end"
            )
        if not 0 <= self.ramp_fraction <= 1:
            raise UserError(f"ramp_fraction={self.ramp_fraction} must be a fraction of the run in [0, 1]")
        if self.reference_steps < 0:
            raise UserError(f"reference_steps={self.reference_steps} must be 0 (off) or a number of steps")


def ema_momentum(step: int, total_steps: int, config: EmaConfig) -> float:
    """Returns the momentum of the update after optimiser step `step`, counted from 0."""
    ramp_steps = config.ramp_fraction * max(total_steps - 1, 1)
    progress = 1.0 if ramp_steps == 0 else min(step / ramp_steps, 1.0)
    momentum = config.start + (config.end - config.start) * progress
    if not config.reference_steps:
        return momentum
    return max(0.0, 1 - (1 - momentum) * config.reference_steps / max(total_steps, 1))


@torch.no_grad()
def update_ema(teacher_params: Sequence[Tensor], source_params: Sequence[Tensor], momentum: float) -> None:
    """Moves each teacher tensor towards its source in place: teacher = momentum * teacher + (1 - momentum) * source.

    Args:
        teacher_params, source_params: pairs of one shape [...] each.

    Raises:
        UserError: the sequences do not pair up, or the teacher is not float32 or wider.
    """
    if len(teacher_params) != len(source_params):
        raise UserError(f"{len(teacher_params)} teacher tensors cannot follow {len(source_params)} source tensors")
    if not teacher_params:
        return
    narrow = {t.dtype for t in teacher_params} - {torch.float32, torch.float64}
    if narrow:
        raise UserError(f"the teacher is held in {narrow.pop()}, which loses small updates; keep it in float32")
    sources = [s.to(t.dtype) for t, s in zip(teacher_params, source_params, strict=True)]
    torch._foreach_lerp_(list(teacher_params), sources, 1 - momentum)
