"""A real training small enough for a test: one process, no engine, made-up music, the trainer's own rules.

Weights, masks, loss, optimiser, momentum and diagnostics are the library's; only the loop is this file's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from distributed.engine.engine import parameter_groups
from distributed.engine.teacher import Teacher
from distributed.watch.config import GuardConfig
from distributed.watch.diagnose import diagnose
from distributed.watch.fixed_crops import FixedCrops
from distributed.watch.guard import CollapseGuard
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.randomness import generator
from pupujepa.training.masks import MaskConfig, draw_mask
from pupujepa.training.objective import ObjectiveConfig, TrainingStep
from pupujepa.training.schedules import ScheduleConfig, learning_rate

MODEL = ModelConfig(
    crop_frames=32, width=32, depth=2, heads=2, predictor_width=16, predictor_depth=2, predictor_heads=2
)
MASKS = MaskConfig(ratio=0.7, warmup_start=0.0, warmup_end=0.0)
STEPS, BATCH, DIAGNOSED_EVERY = 300, 16, 30


@dataclass(frozen=True)
class Recipe:
    """What a scenario changes; the defaults are a run that learns."""

    peak_lr: float = 2e-3
    momentum: float = 0.98
    clip_norm: float = 1.0
    sabotage: Callable[[TrainingStep], None] | None = None
    objective: ObjectiveConfig = field(default_factory=lambda: ObjectiveConfig(target_layers=2))


def train(recipe: Recipe, *, guard: GuardConfig, until: int = STEPS) -> tuple[list[dict], dict[int, list]]:
    """Trains the first `until` steps of a run of STEPS and returns all rows, and the guard's alarms by step."""
    model = PupuJEPA(MODEL, seed=0)
    step = TrainingStep(model, recipe.objective)
    if recipe.sabotage is not None:
        recipe.sabotage(step)
    teacher, watch = Teacher(step), CollapseGuard(guard, total_steps=STEPS)
    optimizer = torch.optim.AdamW(parameter_groups(step, 0.05), lr=0.0, betas=(0.9, 0.95))
    fixed, rows, alarms = fixed_crops(), [], {}
    schedule = ScheduleConfig(peak_lr=recipe.peak_lr, warmup_fraction=0.1)

    def take(row: dict) -> None:
        rows.append(row)
        if found := watch.observe(row):
            alarms[row["step"]] = found

    for number in range(until + 1):
        if number % DIAGNOSED_EVERY == 0:
            take({"step": number} | diagnose(step, model, crops=fixed, teacher=teacher))
        if number == until:
            return rows, alarms
        mel, context, target, _ = crops(number, BATCH)
        loss, _ = step(mel, context, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(step.parameters(), recipe.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, STEPS, schedule)
        optimizer.step()
        teacher.follow(recipe.momentum)
        take({"step": number, "loss": loss.item()})
    raise AssertionError("unreachable")


def without_predictor(step: TrainingStep) -> None:
    """Puts the mean of the context's features in place of the prediction."""

    def forward(context_BKD: Tensor, sequence_BN: Tensor, rotation: object) -> Tensor:
        return context_BKD.mean(1, keepdim=True).expand(-1, sequence_BN.shape[1] - context_BKD.shape[1], -1)

    step.predictor.forward = forward


@cache
def crops(key: int | str, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Crops of `count` pieces with their masks: chords that glide, over a spectrum of the piece's own."""
    rng = generator("music", key)
    time_T, band_F = np.arange(MODEL.crop_frames)[:, None] / MODEL.crop_frames, np.arange(128)[None]
    mels = []
    for _ in range(count):
        tilt = rng.normal() * (band_F / 64 - 1) + 0.5 * np.cos(rng.uniform(0.02, 0.2) * band_F + rng.uniform(0, 6))
        mel_TF = np.repeat(tilt, MODEL.crop_frames, axis=0)
        for _ in range(3):
            centre_T = rng.uniform(5, 120) + rng.normal() * 40 * (time_T - 0.5)
            beat_T = 1 + np.cos(2 * np.pi * (rng.integers(1, 5) * time_T + rng.uniform()))
            mel_TF = mel_TF + 1.5 * beat_T * np.exp(-(((band_F - centre_T) / 6) ** 2))
        mels.append(mel_TF - 0.5 + 0.1 * rng.standard_normal(mel_TF.shape))
    masks = [draw_mask(rng, MASKS, steps=MODEL.grid_steps, bands=MODEL.grid_bands, progress=1.0) for _ in range(count)]
    return (
        torch.from_numpy(np.stack(mels)).float(),
        torch.stack([torch.from_numpy(mask.context) for mask in masks]),
        torch.stack([torch.from_numpy(mask.target) for mask in masks]),
        torch.tensor([mask.strategy for mask in masks]),
    )


def fixed_crops() -> FixedCrops:
    """32 crops that the training does not see."""
    return FixedCrops(*crops("probes", 32), crops_per_clip=1)
