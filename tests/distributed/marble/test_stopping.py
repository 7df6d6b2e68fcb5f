import numpy as np
import torch

from distributed.marble.stopping import StoppingRule
from distributed.marble.tasks import Fit

CURVE = [0.1, 0.5, 0.4, 0.3, 0.2, 0.9]


def test_clean_keeps_the_best_epoch_and_marble_the_last_before_the_stop():
    """With patience 3 both stop after epoch 4; clean keeps epoch 1, marble keeps epoch 4, as MARBLE v2 does."""
    kept = {}
    for protocol in ("clean", "marble"):
        rule = StoppingRule((1,), fit=Fit(patience=3), protocol=protocol)
        for epoch, value in enumerate(CURVE):
            rule.update(epoch, np.array([value]))
        assert not rule.running[0]
        kept[protocol] = int(rule.kept_epoch[0])
    assert kept == {"clean": 1, "marble": 4}


def test_heads_stop_independently():
    """A head that stopped keeps its epoch while its neighbour goes on."""
    rule = StoppingRule((2,), fit=Fit(patience=2), protocol="clean")
    for epoch in range(6):
        rule.update(epoch, np.array([-epoch, epoch], dtype=np.float64))
    np.testing.assert_array_equal(rule.kept_epoch, [0, 5])
    np.testing.assert_array_equal(rule.running, [False, True])


def test_a_monitor_that_is_not_finite_stops_its_head():
    """A diverged probe stops instead of being waited for."""
    rule = StoppingRule((1,), fit=Fit(patience=9), protocol="clean")
    rule.update(0, np.array([np.nan]))
    assert not rule.running[0]


def test_the_plateau_rule_is_torchs():
    """Rates follow torch's ReduceLROnPlateau (mode max) on a long random monitor."""
    fit = Fit(patience=1000, plateau_factor=0.5, plateau_patience=3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, mode="max", factor=0.5, patience=3)
    rule = StoppingRule((1,), fit=fit, protocol="marble")
    rng = np.random.default_rng(0)
    for epoch, value in enumerate(np.cumsum(0.1 + rng.standard_normal(60))):
        rule.update(epoch, np.array([value]))
        scheduler.step(float(value))
        assert rule.rate[0] == optimiser.param_groups[0]["lr"]
