import pytest
import torch

from pupujepa.errors import UserError
from pupujepa.training.ema import EmaConfig, ema_momentum, update_ema


def test_momentum_is_linear_over_the_ramp():
    """The first update has `start`, the end of the ramp `end`, the middle the mean; then it stays."""
    config = EmaConfig(start=0.9, end=0.98, ramp_fraction=0.5)
    assert ema_momentum(0, 1001, config) == pytest.approx(0.9)
    assert ema_momentum(250, 1001, config) == pytest.approx(0.94)
    assert ema_momentum(500, 1001, config) == pytest.approx(0.98)
    assert ema_momentum(1000, 1001, config) == pytest.approx(0.98)
    assert ema_momentum(0, 1, EmaConfig(start=0.9, end=0.99, ramp_fraction=0)) == 0.99


def test_horizon_scales_with_the_run():
    """Momenta chosen for 500k steps average over the same share of a run of 50k."""
    config = EmaConfig(reference_steps=500_000)
    momentum = ema_momentum(0, 50_000, config)
    assert 1 / (1 - momentum) / 50_000 == pytest.approx(1 / (1 - 0.99995) / 500_000)
    assert ema_momentum(0, 500_000, config) == pytest.approx(0.99995)
    assert ema_momentum(0, 10, config) == 0.0


def test_update_is_the_weighted_mean():
    """teacher = momentum * teacher + (1 - momentum) * source, in place, for every tensor."""
    teacher = [torch.randn(3, 4), torch.randn(5)]
    source = [torch.randn(3, 4), torch.randn(5)]
    expected = [0.9 * t.double() + 0.1 * s.double() for t, s in zip(teacher, source)]
    addresses = [t.data_ptr() for t in teacher]
    update_ema(teacher, source, 0.9)
    assert [t.data_ptr() for t in teacher] == addresses
    for ours, wanted in zip(teacher, expected):
        torch.testing.assert_close(ours.double(), wanted, atol=1e-6, rtol=1e-6)


def test_slow_averages_lose_nothing():
    """1,000 updates at momentum 0.99999 in float32 equal the closed form; bf16 would not move at all."""
    teacher, source = [torch.ones(8)], [torch.full((8,), 2.0)]
    for _ in range(1000):
        update_ema(teacher, source, 0.99999)
    assert teacher[0][0].item() - 1 == pytest.approx(1 - 0.99999**1000, rel=1e-2)


def test_sources_may_be_narrower():
    """A bf16 source is read into the float32 teacher."""
    teacher, source = [torch.zeros(4)], [torch.ones(4, dtype=torch.bfloat16)]
    update_ema(teacher, source, 0.75)
    torch.testing.assert_close(teacher[0], torch.full((4,), 0.25))


def test_gradients_do_not_pass():
    """The update works on parameters and records no graph."""
    teacher = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
    source = torch.nn.Parameter(torch.ones(4))
    update_ema([teacher], [source], 0.5)
    assert teacher.grad_fn is None
    assert not teacher.requires_grad


def test_mistakes_are_refused():
    """Sequences that do not pair up, narrow teachers and impossible momenta are errors."""
    with pytest.raises(UserError, match="1 teacher tensors cannot follow 2 source tensors"):
        update_ema([torch.zeros(1)], [torch.zeros(1)] * 2, 0.9)
    with pytest.raises(UserError, match=r"the teacher is held in torch\.bfloat16, which loses small updates"):
        update_ema([torch.zeros(1, dtype=torch.bfloat16)], [torch.zeros(1)], 0.9)
    with pytest.raises(UserError, match=r"must be in \[0, 1\]"):
        EmaConfig(start=1.1)
    with pytest.raises(UserError, match="ramp_fraction=2"):
        EmaConfig(ramp_fraction=2)
