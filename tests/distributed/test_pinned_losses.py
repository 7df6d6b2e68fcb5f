"""What preset demo computes, pinned: a change of defaults must not pass unnoticed through a hundred green tests."""

import numpy as np
import pytest
import torch

from distributed.engine.engine import parameter_groups
from distributed.experiment import load_experiment
from pupujepa.model.model import PupuJEPA
from pupujepa.randomness import generator
from pupujepa.training.ema import ema_momentum, update_ema
from pupujepa.training.masks import draw_mask
from pupujepa.training.objective import TrainingStep, teacher_pairs

# of the demo before there were variants; on one machine they are equal bit for bit, kernels elsewhere differ at 1e-7
LOSSES = (0.6156272292137146, 0.5850756168365479, 0.5355503559112549)


def test_the_demo_computes_what_it_always_did():
    """Three steps of the preset on crops of 64 frames, in float32: weights, masks, loss, optimiser and teacher."""
    experiment = load_experiment(["demo"], overrides=["model.crop_frames=64"])
    step = TrainingStep(PupuJEPA(experiment.model, seed=0), experiment.objective)
    optimizer = torch.optim.AdamW(parameter_groups(step, 0.05), lr=2e-3, betas=(0.9, 0.95))
    losses = []
    for number in range(len(LOSSES)):
        drawn = [
            draw_mask(generator("pin", number, i), experiment.masks, steps=16, bands=8, progress=0.0) for i in range(4)
        ]
        context, target = (torch.from_numpy(np.stack(part)) for part in list(zip(*drawn))[:2])
        mel = torch.randn(4, 64, 128, generator=torch.Generator().manual_seed(number))
        loss, _ = step(mel, context, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _, teachers, students = zip(*teacher_pairs(step))
        momentum = ema_momentum(number, len(LOSSES), experiment.ema)
        update_ema([t.data for t in teachers], [s.data for s in students], momentum)
        losses.append(loss.item())
    assert losses == pytest.approx(LOSSES, rel=2e-6)
