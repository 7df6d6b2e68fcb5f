"""Real trainings that are made to collapse, and one that is not: the guard names each, and is silent over the last."""

import pytest

from distributed.watch.config import GuardConfig
from tests.distributed.tiny_training import Recipe, train, without_predictor

# the trainings are short
GUARD = GuardConfig(unexplained_steps=0)


def alarms_of(recipe, *, until):
    _, alarms = train(recipe, guard=GUARD, until=until)
    return {alarm.name for found in alarms.values() for alarm in found}


@pytest.fixture(scope="module")
def healthy():
    return train(Recipe(), guard=GUARD)


def test_a_healthy_run_of_the_same_length_is_silent(healthy):
    """No alarm, and far from one: the margins of every threshold are wide."""
    rows, alarms = healthy
    assert alarms == {}
    diagnosed = [row for row in rows if "diag/std_teacher" in row]
    late = [row for row in diagnosed if row["step"] >= GUARD.unexplained_after * rows[-1]["step"]]
    ranks = [row["diag/effective_rank_teacher"] for row in diagnosed[1:]]
    margins = {
        "spread": min(row["diag/std_teacher"] for row in diagnosed) - GUARD.std_below,
        "angle": GUARD.cosine_above - max(row["diag/cosine_teacher"] for row in diagnosed),
        "rank": min(ranks) / max(ranks) - (1 - GUARD.fall),
        "explained": min(row["diag/explained_variance"] for row in late) - GUARD.unexplained_below,
        "distance": min(row["diag/teacher_student_distance"] for row in diagnosed[1:]) / GUARD.distance_below - 1,
    }
    print(margins)  # noqa: T201  (shown where it fails, and with -s)
    assert margins["spread"] > 0.15
    assert margins["angle"] > 0.15
    assert margins["rank"] > 0.05
    assert margins["explained"] > 0.02
    assert margins["distance"] > 100


def test_the_healthy_run_learns(healthy):
    """Silence over a run that stands still would be worth nothing."""
    rows, _ = healthy
    assert rows[-1]["diag/explained_variance"] > 0.1


def test_a_momentum_of_zero_is_named():
    """With EMA 0 the target is the student itself. Whether it collapses is luck; that nothing prevents it is not."""
    assert "teacher copies" in alarms_of(Recipe(momentum=0.0), until=60)


def test_a_learning_rate_a_hundred_times_too_large_is_named():
    """The rank falls to a few directions, and the prediction is no better than a constant."""
    names = alarms_of(Recipe(peak_lr=100 * Recipe().peak_lr), until=150)
    assert "unexplained" in names
    assert names & {"spread", "angle", "joint fall"}, "the features collapsed"


def test_a_missing_predictor_is_named():
    """The mean of the context in place of a prediction: the loss falls, and nothing is foreseen."""
    assert "unexplained" in alarms_of(Recipe(sabotage=without_predictor), until=150)


def test_without_predictor_and_momentum_all_features_become_one():
    """The full collapse: the loss goes to zero, and every sign of it is named."""
    rows, alarms = train(Recipe(sabotage=without_predictor, momentum=0.0), guard=GUARD, until=150)
    names = {alarm.name for found in alarms.values() for alarm in found}
    assert {"spread", "angle", "joint fall", "unexplained"} <= names
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.1 * losses[0], "the loss alone would have been praised"
