"""Filled gaps: one for a perfect prediction, zero for the mean of each band, and the mask is the one on the page."""

import numpy as np
import pytest
import torch

from distributed.report.music import visible_patches
from distributed.report.prediction import Filled, explained, fill_mask
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.training.masks import BLOCK, MaskConfig
from pupujepa.training.objective import ObjectiveConfig, TrainingStep

GRID = (16, 4)


def filled(prediction, seed=0):
    """Two masks over random features that differ between bands; `prediction` maps (truth, band) to a prediction."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for part in (0, 1):
        target = np.arange(part, 64, 2)
        truth = torch.randn(32, 6, generator=generator) + 5 * torch.from_numpy(target % 4)[:, None]
        made.append(Filled(truth, truth, target, GRID))
    means = {b: torch.cat([f.target_MD[torch.from_numpy(f.band == b)] for f in made]).mean(0) for b in range(4)}
    return [
        Filled(torch.stack([prediction(t, means[b]) for t, b in zip(f.target_MD, f.band)]), f.target_MD, f.target, GRID)
        for f in made
    ]


def test_a_perfect_prediction_explains_everything():
    """All hidden patches glow, visible ones have no value."""
    maps, total = explained(filled(lambda truth, mean: truth))
    assert total == pytest.approx(1)
    assert np.isnan(maps[0]).sum() == 32
    np.testing.assert_allclose(maps[0][~np.isnan(maps[0])], 1)


def test_knowing_the_band_alone_explains_nothing():
    """The features of bands differ much more than those within one, and that earns no credit."""
    maps, total = explained(filled(lambda truth, mean: mean))
    assert total == pytest.approx(0, abs=1e-6)
    assert np.nanmin(maps[0]) < 0


def test_half_way_to_the_truth_explains_three_quarters():
    """The share is of squared distances."""
    _, total = explained(filled(lambda truth, mean: (truth + mean) / 2))
    assert total == pytest.approx(0.75, abs=1e-6)


def test_the_filled_mask_is_the_drawn_one():
    """The picture of the mask and the picture of its filling show the same hidden patches."""
    config = ModelConfig(
        crop_frames=128, width=16, depth=1, heads=2, predictor_width=16, predictor_depth=1, predictor_heads=2
    )
    step = TrainingStep(PupuJEPA(config, seed=0), ObjectiveConfig())
    mel_TF = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    found = fill_mask(step, mel_TF, MaskConfig(), strategy=BLOCK, crop=0)
    hidden = np.zeros(found.grid, bool)
    hidden.ravel()[found.target] = True
    np.testing.assert_array_equal(hidden, ~visible_patches(MaskConfig(), BLOCK, grid=found.grid))
