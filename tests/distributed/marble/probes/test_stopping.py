from dataclasses import replace

import numpy as np
import pytest
import torch

from distributed.marble.probes.bank import StoppingRule
from distributed.marble.tasks.marble_tasks import MARBLE_TASKS
from distributed.marble.tasks.tasks import ProbeFit

CURVE = [0.1, 0.5, 0.4, 0.3, 0.2, 0.9]


def test_clean_keeps_the_best_epoch_and_marble_the_last_before_the_stop():
    """With patience 3 both stop after epoch 4; clean keeps epoch 1, marble keeps epoch 4, as MARBLE v2 does."""
    kept = {}
    for protocol in ("clean", "marble"):
        rule = StoppingRule((1,), fit=ProbeFit(learning_rates=(1e-3,), patience=3), protocol=protocol)
        for epoch, value in enumerate(CURVE):
            rule.update(epoch, np.array([value]))
        assert not rule.running[0]
        kept[protocol] = int(rule.kept_epoch[0])
    assert kept == {"clean": 1, "marble": 4}


def test_heads_stop_independently():
    """A stopped head keeps its epoch while another continues."""
    rule = StoppingRule((2,), fit=ProbeFit(learning_rates=(1e-3, 1e-2), patience=2), protocol="clean")
    for epoch in range(6):
        rule.update(epoch, np.array([-epoch, epoch], dtype=np.float64))
    np.testing.assert_array_equal(rule.kept_epoch, [0, 5])
    np.testing.assert_array_equal(rule.running, [False, True])


def test_a_monitor_that_is_not_finite_stops_its_head():
    """A diverged probe stops at once, before its patience ends."""
    rule = StoppingRule((1,), fit=ProbeFit(learning_rates=(1e-3,), patience=9), protocol="clean")
    rule.update(0, np.array([np.nan]))
    assert not rule.running[0]


@pytest.mark.parametrize("task", MARBLE_TASKS, ids=lambda t: t.name)
def test_item_plateau_of_each_config_is_torchs(task):
    """The rate follows torch's ReduceLROnPlateau (mode max) through 200 epochs, with each row's rate and numbers.

    The monitor is below zero at first, as R2 is, stands still, and is no number once; key's factor of 0.1 reaches the
    rates that torch no longer lowers.
    """
    fit = replace(task.under("marble").fit, patience=1000)
    [rate] = fit.learning_rates
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode="max", factor=fit.plateau_factor, patience=fit.plateau_patience
    )
    rule = StoppingRule((1,), fit=fit, protocol="marble")
    monitor = np.cumsum(0.02 + 0.3 * np.random.default_rng(0).standard_normal(200)) - 2
    monitor[20], monitor[120:] = np.nan, monitor[120]
    for epoch, value in enumerate(monitor):
        rule.update(epoch, np.array([value]))
        scheduler.step(float(value))
        assert rate * rule.rate[0] == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
    assert rule.rate[0] < fit.plateau_factor


# (monitor after each epoch, patience, the epoch after which training ends, the epoch whose weights are tested)
EARLY_STOPS = {
    "waits patience epochs after the best": ([0.1, 0.5, 0.4, 0.3, 0.2, 0.9], 3, 4, 4),
    "an equal value is no improvement": ([0.5, 0.5, 0.5, 0.9], 2, 2, 2),
    "the least improvement counts": ([0.5, 0.5, 0.5000001, 0.5, 0.5], 2, 4, 4),
    "not a number ends it at once": ([0.1, float("nan"), 0.9], 5, 1, 1),
    "infinity ends it too": ([0.1, float("inf"), 0.9], 5, 1, 1),
    "a late improvement starts the count anew": ([0.5, 0.4, 0.6, 0.5, 0.5], 2, 4, 4),
}


@pytest.mark.parametrize("name", EARLY_STOPS)
def test_item_early_stopping_is_lightnings(name: str):
    """Hand-made traces match EarlyStopping(mode="max", min_delta=0, check_finite=True); the last epoch is kept."""
    values, patience, last, kept = EARLY_STOPS[name]
    rule = StoppingRule((1,), fit=ProbeFit(learning_rates=(1e-3,), patience=patience), protocol="marble")
    ended = []
    for epoch, value in enumerate(values):
        rule.update(epoch, np.array([value]))
        ended.append(not rule.running[0])
    assert ended == [epoch >= last for epoch in range(len(values))]
    assert rule.kept_epoch[0] == kept


@pytest.mark.parametrize("task", MARBLE_TASKS, ids=lambda t: t.name)
def test_item_early_stop_of_each_config(task):
    """With a falling monitor a row trains 1 + patience epochs, even if plateaus lower the rate."""
    fit = task.under("marble").fit
    rule = StoppingRule((1,), fit=fit, protocol="marble")
    for epoch in range(fit.max_epochs):
        rule.update(epoch, np.array([-float(epoch)]))
        if not rule.running[0]:
            break
    assert epoch == fit.patience < fit.max_epochs
    assert rule.kept_epoch[0] == epoch
