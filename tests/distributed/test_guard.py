"""The guard speaks when a documented pattern of collapse shows, once, and is silent over a healthy run."""

import pytest

from distributed.guard import CollapseGuard

HEALTHY = {
    "diag/std_teacher": 0.9,
    "diag/cosine_teacher": 0.1,
    "diag/teacher_moved": 0.1,
    "diag/effective_rank_teacher": 100.0,
    "diag/explained_variance": 0.3,
}


def feed(guard, *, losses, diagnostics):
    warnings = []
    for step, loss in enumerate(losses):
        warnings += guard.observe({"step": 10 * step, "loss": loss})
    return warnings + guard.observe({"step": 10 * len(losses)} | HEALTHY | diagnostics)


def test_a_healthy_run_is_silent():
    """A falling loss with rising diagnostics is what learning looks like."""
    assert feed(CollapseGuard(), losses=[1.0, 0.8, 0.6], diagnostics={}) == []


def test_the_first_steps_of_a_run_are_no_collapse():
    """Before a predictor has learnt anything its explained variance is negative, and rises."""
    guard = CollapseGuard()
    assert feed(guard, losses=[1.0, 0.7], diagnostics={"diag/explained_variance": -0.5}) == []
    assert feed(guard, losses=[0.6, 0.5], diagnostics={"diag/explained_variance": -0.1}) == []


@pytest.mark.parametrize(
    ("diagnostics", "sentence"),
    [
        ({"diag/std_teacher": 0.2}, "features have shrunk"),
        ({"diag/cosine_teacher": 0.95}, "features point one way"),
        ({"diag/teacher_moved": 0.0}, "the teacher has not moved"),
    ],
)
def test_each_pattern_is_said_once(diagnostics, sentence):
    """An alarm is worth one line, not one per row."""
    guard = CollapseGuard()
    (warning,) = feed(guard, losses=[1.0], diagnostics=diagnostics)
    assert sentence in warning
    assert feed(guard, losses=[1.0], diagnostics=diagnostics) == []


@pytest.mark.parametrize("key", ["diag/effective_rank_teacher", "diag/explained_variance"])
def test_a_falling_loss_with_falling_rank_is_a_partial_collapse(key):
    """The loss falls by 15 % within 2,000 steps while rank or explained variance falls 30 % below its maximum."""
    guard = CollapseGuard()
    feed(guard, losses=[1.0, 0.99], diagnostics={})
    (warning,) = feed(guard, losses=[1.0, 0.8], diagnostics={key: 0.6 * HEALTHY[key]})
    assert "partial collapse" in warning


def test_a_falling_rank_alone_is_no_alarm():
    """Rank moves; only together with a falling loss it is the pattern."""
    guard = CollapseGuard()
    feed(guard, losses=[1.0, 0.99], diagnostics={})
    assert feed(guard, losses=[1.0, 0.95], diagnostics={"diag/effective_rank_teacher": 60.0}) == []


def test_the_rank_of_random_weights_is_no_maximum():
    """An untrained network spreads its features; what training gives up of that is no collapse."""
    guard = CollapseGuard()
    guard.observe({"step": 0} | HEALTHY | {"diag/effective_rank_teacher": 1000.0})
    assert feed(guard, losses=[1.0, 0.7], diagnostics={}) == []


def test_an_old_loss_is_forgotten():
    """A loss that fell slowly, over more than 2,000 steps, is no alarm."""
    guard = CollapseGuard()
    feed(guard, losses=[1.0], diagnostics={})
    guard.observe({"step": 5000, "loss": 0.5})
    assert guard.observe({"step": 5001} | HEALTHY | {"diag/effective_rank_teacher": 50.0}) == []


def test_a_rising_loss_with_falling_rank_is_an_alarm():
    """The loss 30 % above its minimum while the rank has fallen."""
    guard = CollapseGuard()
    feed(guard, losses=[0.5, 0.51], diagnostics={})
    (warning,) = feed(guard, losses=[0.5, 0.7], diagnostics={"diag/effective_rank_teacher": 60.0})
    assert "above its minimum" in warning
