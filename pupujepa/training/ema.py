"""Exponential moving average of the teacher: momentum as a pure function of the step, and the update.

The average is float32: at momentum 0.99999, rounding to bf16 would cancel every update.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pupujepa.errors import UserError


@dataclass(frozen=True)
class EmaConfig:
    """Momentum schedule: linear from `start` to `end` over `ramp_fraction` of the run, then constant.

    reference_steps: the run length for which the momenta were chosen: the averaging horizon 1 / (1 - momentum) is
        scaled to the actual length. 0 uses the momenta as written.

    Raises:
        UserError: a momentum or a fraction outside [0, 1], negative steps, or momenta that never move the teacher.
    """

    start: float = 0.99995
    end: float = 0.99999
    ramp_fraction: float = 1.0
    reference_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1 or not 0 <= self.end <= 1:
            raise UserError(f"EMA momenta {self.start} and {self.end} must be in [0, 1]")
        if self.start == self.end == 1:
            raise UserError(
                "EMA momenta of 1 keep the teacher at its first, random weights, so the student would learn to predict "
                "noise; lower ema.start or ema.end"
            )
        if not 0 <= self.ramp_fraction <= 1:
            raise UserError(f"ramp_fraction={self.ramp_fraction} must be a fraction of the run in [0, 1]")
        if self.reference_steps < 0:
            raise UserError(f"reference_steps={self.reference_steps} must be 0 (off) or a number of steps")


def ema_momentum(step: int, total_steps: int, config: EmaConfig) -> float:
    """Returns the momentum of the update after optimiser step `step`, counted from 0."""
    ramp_steps = config.ramp_fraction * max(total_steps - 1, 1)  # the last step has exactly `end`
    progress = 1.0 if ramp_steps == 0 else min(step / ramp_steps, 1.0)
    momentum = config.start + (config.end - config.start) * progress
    if not config.reference_steps:
        return momentum
    return max(0.0, 1 - (1 - momentum) * config.reference_steps / max(total_steps, 1))


@torch.no_grad()
def update_ema(teacher_params: Sequence[Tensor], source_params: Sequence[Tensor], momentum: float) -> None:
    """Updates each teacher tensor in place: teacher = momentum * teacher + (1 - momentum) * source.

    Args:
        teacher_params, source_params: pairs of equal shape [...].

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
    # a bf16 source is widened: lerp takes one dtype
    sources = [s.to(t.dtype) for t, s in zip(teacher_params, source_params, strict=True)]
    torch._foreach_lerp_(list(teacher_params), sources, 1 - momentum)
