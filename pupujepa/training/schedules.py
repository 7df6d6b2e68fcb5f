"""Learning rate as a pure function of the step, so that a resumed run replays nothing.

A run with a constant rate (wsd) can be finished from any checkpoint: a branch, a run of its own, copies the checkpoint
and lowers the rate from there, while the parent continues (Hägele et al. 2024, arXiv 2405.18392).
"""

import math
from dataclasses import dataclass

from pupujepa.errors import UserError, require_known

COSINE = "cosine"
WSD = "wsd"
SCHEDULES = (COSINE, WSD)


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate schedule: linear warm-up to `peak_lr`, then `cosine` or `wsd` down to `final_lr`.

    wsd (warm-up, stable, decay): constant until the last `cooldown_fraction` of the run, then linear.

    Raises:
        UserError: an unknown kind, rates in the wrong order, or fractions that overlap or leave [0, 1].
    """

    kind: str = COSINE
    peak_lr: float = 1e-3
    final_lr: float = 1e-6
    warmup_fraction: float = 0.067
    cooldown_fraction: float = 0.2

    def __post_init__(self) -> None:
        require_known("schedule kind", self.kind, SCHEDULES)
        if not 0 <= self.final_lr <= self.peak_lr:
            raise UserError(f"final_lr={self.final_lr} must be between 0 and peak_lr={self.peak_lr}")
        if min(self.warmup_fraction, self.cooldown_fraction) < 0 or self.warmup_fraction > 1:
            raise UserError("warmup_fraction and cooldown_fraction must be fractions of the run in [0, 1]")
        if self.kind == WSD and self.warmup_fraction + self.cooldown_fraction > 1:
            raise UserError(
                f"warm-up ({self.warmup_fraction}) and cooldown ({self.cooldown_fraction}) overlap; lower one, so that "
                "their sum is at most 1"
            )


@dataclass(frozen=True)
class BranchConfig:
    """Cooldown branch of another run, filled in by `train --cooldown-from`; `step` 0 means no branch.

    parent: the parent's run directory.
    step: finished steps of the parent where the branch begins.
    rate: the parent's learning rate at that step; from there it falls linearly to `schedule.final_lr`.
    horizon_steps: length of the parent's run. The teacher's momentum and the masks use it instead of the branch's
        length, so that the branch changes the learning rate only.

    Raises:
        UserError: impossible or incomplete numbers.
    """

    parent: str = ""
    step: int = 0
    rate: float = 0.0
    horizon_steps: int = 0

    def __post_init__(self) -> None:
        without_step = not self.step and (self.parent or self.rate or self.horizon_steps)
        if min(self.step, self.rate, self.horizon_steps) < 0 or without_step or (self.step and not self.horizon_steps):
            raise UserError(
                f"branch.parent={self.parent}, step={self.step}, rate={self.rate} and "
                f"horizon_steps={self.horizon_steps} describe no branch; let `train --cooldown-from RUN:STEP` fill "
                f"the section"
            )


def learning_rate(
    step: int,
    total_steps: int,
    config: ScheduleConfig,
    *,
    branch: BranchConfig = BranchConfig(),
) -> float:
    """Returns the learning rate of `step` in [0, total_steps); the last step has `final_lr`.

    Args:
        branch: start of a cooldown; its rates equal those of a wsd run that cools down over the same steps.
    """
    if branch.step:
        weight = (total_steps - 1 - step) / (total_steps - branch.step)
        return config.final_lr + (branch.rate - config.final_lr) * max(weight, 0.0)
    warmup_steps = round(config.warmup_fraction * total_steps)
    if step < warmup_steps:
        return config.peak_lr * (step + 1) / warmup_steps  # not 0 at the first step, which would be wasted
    if config.kind == COSINE:
        fall = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1)
        weight = 0.5 * (1 + math.cos(math.pi * min(fall, 1.0)))
    else:
        cooldown_steps = round(config.cooldown_fraction * total_steps)
        weight = min(1.0, (total_steps - 1 - step) / cooldown_steps) if cooldown_steps else 1.0  # 1 is the plateau
    return config.final_lr + (config.peak_lr - config.final_lr) * max(weight, 0.0)
