import math
from itertools import pairwise

import pytest
import torch

from pupujepa.errors import UserError
from pupujepa.training.schedules import BranchConfig, ScheduleConfig, learning_rate

STEPS = 1000


def rates(config: ScheduleConfig, steps: int = STEPS) -> list[float]:
    return [learning_rate(step, steps, config) for step in range(steps)]


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_warm_up_is_linear_and_never_zero(kind):
    """The first step already learns, the last of the warm-up has the peak."""
    lr = rates(ScheduleConfig(kind=kind, warmup_fraction=0.1))
    assert lr[0] == pytest.approx(1e-3 / 100)
    assert lr[49] == pytest.approx(5e-4)
    assert lr[99] == pytest.approx(1e-3)
    assert max(lr) == pytest.approx(1e-3)


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_ends_at_the_final_rate_and_never_rises_after_the_warm_up(kind):
    """The last step has final_lr, and the rate falls monotonically."""
    lr = rates(ScheduleConfig(kind=kind))
    assert lr[-1] == pytest.approx(1e-6)
    after = lr[67:]
    assert all(a >= b for a, b in pairwise(after))


def test_cosine_agrees_with_torch():
    """Without warm-up the cosine is torch's CosineAnnealingLR."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS - 1, eta_min=1e-6)
    for step, ours in enumerate(rates(ScheduleConfig(warmup_fraction=0))):
        assert ours == pytest.approx(reference.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        reference.step()


def test_wsd_is_constant_until_the_cooldown():
    """wsd keeps the peak between warm-up and cooldown, then falls linearly."""
    lr = rates(ScheduleConfig(kind="wsd", warmup_fraction=0.05, cooldown_fraction=0.2))
    assert set(lr[50:800]) == {1e-3}
    assert lr[899] == pytest.approx(1e-6 + (1e-3 - 1e-6) * 0.5)
    flat = rates(ScheduleConfig(kind="wsd", warmup_fraction=0, cooldown_fraction=0))
    assert set(flat) == {1e-3}


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_short_runs_work(steps):
    """Runs of a few steps give finite positive rates."""
    for kind in ("cosine", "wsd"):
        assert all(math.isfinite(lr) and lr > 0 for lr in rates(ScheduleConfig(kind=kind), steps))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "linear"}, "schedule kind='linear' is unknown; choose one of cosine, wsd"),
        ({"final_lr": 1.0}, "final_lr=1.0 must be between 0 and peak_lr=0.001"),
        ({"warmup_fraction": -0.1}, "must be fractions of the run"),
        ({"kind": "wsd", "warmup_fraction": 0.9}, "overlap"),
    ],
)
def test_impossible_schedules_are_refused(change, message):
    """Impossible schedules are errors on construction."""
    with pytest.raises(UserError, match=message):
        ScheduleConfig(**change)


def test_a_branch_cools_down_as_a_run_of_that_length_does():
    """A branch off a wsd run has, step by step, the rates of a run of 1,000 steps that cools down from there."""
    config = ScheduleConfig(kind="wsd", cooldown_fraction=0.2)
    straight, longer = rates(config), 5 * STEPS
    branch = BranchConfig("runs/parent", 800, learning_rate(800, longer, config), longer)
    branched = [learning_rate(step, STEPS, config, branch=branch) for step in range(800, STEPS)]
    assert branched == pytest.approx(straight[800:], rel=1e-12)


@pytest.mark.parametrize(
    "fields",
    [
        {"parent": "runs/a", "step": 3},
        {"step": 3, "rate": 0.1},
        {"rate": 0.1},
        {"horizon_steps": 3},
        {"step": -1, "horizon_steps": 3},
        {"parent": "runs/a"},
    ],
)
def test_impossible_branches_are_refused(fields):
    """Incomplete branches are errors: they have no schedule, or would start from new weights."""
    with pytest.raises(UserError, match="describe no branch"):
        BranchConfig(**fields)
