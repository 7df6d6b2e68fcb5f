"""The cost of the diagnostics: counted in operations, and a measurement that works on a small model."""

import pytest
import torch

from benchmarks.diagnostics import AIM, COUNTED, counted_share, measure
from distributed.experiment import load_experiment


@pytest.mark.parametrize("preset", COUNTED)
def test_diagnostics_cost_less_than_two_per_cent(preset):
    """Of the operations, at the presets' intervals: on one rank and on the 64 that large runs have."""
    experiment = load_experiment([preset])
    assert 0 < counted_share(experiment, ranks=1) < AIM
    assert preset == "demo" or counted_share(experiment, ranks=64) < AIM


def test_the_share_grows_with_the_ranks():
    """Every rank looks at the whole probe set, whatever its part of the batch."""
    experiment = load_experiment(["base"])
    one, eight = (counted_share(experiment, ranks=ranks) for ranks in (1, 8))
    assert eight == pytest.approx(8 * one)
    assert counted_share(experiment, ranks=7) is None


def test_a_measurement():
    """All three parts take time, and the share is made of them."""
    small = ["model.crop_frames=64", "diagnostics.clips=2", "diagnostics.crops_per_clip=1", "stream.global_batch=4"]
    found = measure(load_experiment(["demo"], overrides=small), device=torch.device("cpu"), runs=2)
    assert min(found.step_s, found.diagnostics_s, found.observation_s) > 0
    spent = found.diagnostics_s / found.every + found.observation_s / found.log_every
    assert found.share == pytest.approx(spent / found.step_s)
