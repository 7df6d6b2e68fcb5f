"""The cost of the diagnostics: counted in operations, and a measurement that works on a small model."""

import pytest
import torch

from benchmarks.diagnostics import AIM, COUNTED, counted_share, experiment_of, measure
from distributed.experiment import load_experiment


@pytest.mark.parametrize("model", COUNTED)
def test_diagnostics_cost_less_than_two_per_cent(model):
    """At the presets' intervals, by operations: the demo on one or two ranks, the others on up to 512."""
    experiment = experiment_of(model)
    ranks = (1, 2) if model == "demo" else (1, 8, 64, 512)
    assert all(0 < counted_share(experiment, ranks=count) < AIM for count in ranks)


def test_the_demo_is_looked_at_fifteen_times():
    """There are enough diagnostics for curves, not counting the last one."""
    experiment = load_experiment(["demo"])
    assert experiment.train.steps // experiment.diagnostics.every >= 15


def test_the_ranks_share_the_passes():
    """With enough crops for all ranks the share stays the same, except for the decompositions."""
    experiment = experiment_of("base")
    one, two, many = (counted_share(experiment, ranks=ranks) for ranks in (1, 2, 512))
    assert one < two < 1.5 * one
    assert many > 10 * one
    assert counted_share(experiment, ranks=7) is None


def test_lidar_costs_what_its_crops_do():
    """Ten crops of a clip, each of them a pass of the teacher, cost less if only every second diagnostic uses them."""
    base = ["model=base", "diagnostics.clips=24"]
    without, all_, half = (
        counted_share(load_experiment(["paper"], overrides=[*base, *more]), ranks=1)
        for more in (["diagnostics.crops_per_clip=1"], [], ["diagnostics.lidar_every=2"])
    )
    assert half - without == pytest.approx((all_ - without) / 2, rel=1e-6)
    assert 2 < all_ / without < 9


def test_a_measurement():
    """All three parts take time, and the share is made of them."""
    small = ["model.crop_frames=64", "diagnostics.clips=2", "diagnostics.crops_per_clip=2", "stream.global_batch=4"]
    found = measure(load_experiment(["demo"], overrides=small), device=torch.device("cpu"), runs=2)
    assert min(found.step_s, found.diagnostics_s) > 0
    look_s = found.diagnostics_s + found.lidar_s / found.config.lidar_every
    spent = look_s / found.config.every
    assert found.share == pytest.approx(spent / found.step_s)
