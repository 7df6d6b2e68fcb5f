"""The guard speaks when a documented pattern of collapse shows, once, and is silent over a healthy run."""

import pytest

from distributed.watch.config import GuardConfig
from distributed.watch.guard import CollapseGuard
from pupujepa.errors import UserError

HEALTHY = {
    "diag/std_teacher": 0.9,
    "diag/cosine_teacher": 0.1,
    "diag/teacher_moved": 0.1,
    "diag/effective_rank_teacher": 100.0,
    "diag/explained_variance": 0.3,
}


def new_guard(**settings):
    return CollapseGuard(GuardConfig(**settings), total_steps=1_000_000)


def feed(guard, *, losses, diagnostics):
    warnings = []
    for step, loss in enumerate(losses):
        warnings += guard.observe({"step": 10 * step, "loss": loss})
    return warnings + guard.observe({"step": 10 * len(losses)} | HEALTHY | diagnostics)


def test_a_healthy_run_is_silent():
    """A falling loss with rising diagnostics is what learning looks like."""
    assert feed(new_guard(), losses=[1.0, 0.8, 0.6], diagnostics={}) == []


def test_the_first_steps_of_a_run_are_no_collapse():
    """Before a predictor has learnt anything its explained variance is negative, and rises."""
    guard = new_guard()
    assert feed(guard, losses=[1.0, 0.7], diagnostics={"diag/explained_variance": -0.5}) == []
    assert feed(guard, losses=[0.6, 0.5], diagnostics={"diag/explained_variance": -0.1}) == []


@pytest.mark.parametrize(
    ("diagnostics", "name", "sentence"),
    [
        ({"diag/std_teacher": 0.2}, "spread", "features have shrunk"),
        ({"diag/cosine_teacher": 0.95}, "angle", "features point one way"),
        ({"diag/teacher_moved": 0.0}, "teacher stands", "the teacher has not moved"),
        ({"diag/teacher_student_distance": 0.0}, "teacher copies", "the teacher equals the student"),
    ],
)
def test_each_pattern_is_said_once(diagnostics, name, sentence):
    """An alarm is worth one line, not one per row."""
    guard = new_guard()
    (alarm,) = feed(guard, losses=[1.0], diagnostics=diagnostics)
    assert alarm.name == name
    assert sentence in alarm.sentence
    assert feed(guard, losses=[1.0], diagnostics=diagnostics) == []


@pytest.mark.parametrize("key", ["diag/effective_rank_teacher", "diag/explained_variance"])
def test_a_falling_loss_with_falling_rank_is_a_partial_collapse(key):
    """The loss falls by 15 % within 2,000 steps while rank or explained variance falls 30 % below its maximum."""
    guard = new_guard()
    feed(guard, losses=[1.0, 0.99], diagnostics={})
    (alarm,) = feed(guard, losses=[1.0, 0.8], diagnostics={key: 0.6 * HEALTHY[key]})
    assert alarm.name == "joint fall"
    assert "partial collapse" in alarm.sentence


def test_a_falling_rank_alone_is_no_alarm():
    """Rank moves; only together with a falling loss it is the pattern."""
    guard = new_guard()
    feed(guard, losses=[1.0, 0.99], diagnostics={})
    assert feed(guard, losses=[1.0, 0.95], diagnostics={"diag/effective_rank_teacher": 60.0}) == []


def test_the_rank_of_random_weights_is_no_maximum():
    """An untrained network spreads its features; what training gives up of that is no collapse."""
    guard = new_guard()
    guard.observe({"step": 0} | HEALTHY | {"diag/effective_rank_teacher": 1000.0})
    assert feed(guard, losses=[1.0, 0.7], diagnostics={}) == []


def test_an_old_loss_is_forgotten():
    """A loss that fell slowly, over more than 2,000 steps, is no alarm."""
    guard = new_guard()
    feed(guard, losses=[1.0], diagnostics={})
    guard.observe({"step": 5000, "loss": 0.5})
    assert guard.observe({"step": 5001} | HEALTHY | {"diag/effective_rank_teacher": 50.0}) == []


def test_a_rising_loss_with_falling_rank_is_an_alarm():
    """The loss 30 % above its minimum while the rank has fallen."""
    guard = new_guard()
    feed(guard, losses=[0.5, 0.51], diagnostics={})
    (alarm,) = feed(guard, losses=[0.5, 0.7], diagnostics={"diag/effective_rank_teacher": 60.0})
    assert alarm.name == "loss rise"
    assert "above its minimum" in alarm.sentence


def test_a_rising_loss_with_falling_probes_is_an_alarm():
    """The probes count like rank and explained variance; that they waver by less than `probe_fall` does not."""
    for fallen_to, names in ((0.52, []), (0.45, ["loss rise"])):
        guard = new_guard()
        feed(guard, losses=[0.5, 0.51], diagnostics={})
        guard.observe({"step": 25, "probe/mean": 0.55})
        guard.observe({"step": 26, "probe/mean": fallen_to})
        assert [alarm.name for alarm in feed(guard, losses=[0.5, 0.7], diagnostics={})] == names


def test_a_prediction_that_explains_nothing_is_an_alarm_once_it_had_time():
    """Every run begins there, so the first share of it does not count."""
    guard = CollapseGuard(GuardConfig(unexplained_after=0.5, unexplained_steps=0), total_steps=100)
    nothing = HEALTHY | {"diag/explained_variance": -0.01}
    assert guard.observe({"step": 49} | nothing) == []
    assert [alarm.name for alarm in guard.observe({"step": 50} | nothing)] == ["unexplained"]


def test_thresholds_come_from_the_configuration():
    """A run that knows better than our reasons says so."""
    assert feed(new_guard(std_below=0.1), losses=[1.0], diagnostics={"diag/std_teacher": 0.2}) == []


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"action": "panic"}, "choose one of warn, snapshot, stop"),
        ({"fall": 30.0}, "guard.fall=30.0 is a share"),
    ],
)
def test_impossible_settings_are_refused(settings, match):
    """With the field and the remedy."""
    with pytest.raises(UserError, match=match):
        GuardConfig(**settings)
