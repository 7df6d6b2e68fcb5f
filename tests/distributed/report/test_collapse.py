"""The verdict: each kind of collapse is called by its name, and a healthy run is not."""

import pytest

from distributed.drawing.wording import percent
from distributed.report.collapse import judge
from distributed.report.inputs import FEATURES, PATCHES


def rows(**last):
    """Twenty rows of a healthy run; `last` moves a diagnostic linearly from its healthy start to the given end."""
    start = {"explained_variance": 0.05, "effective_rank_teacher": 50, "std_teacher": 0.8, "cosine_teacher": 0.3}
    end = start | {"explained_variance": 0.3, "effective_rank_teacher": 60} | last
    made = []
    for i in range(21):
        done = i / 20
        values = {f"diag/{key}": start.get(key, 1.0) * (1 - done) + end[key] * done for key in end}
        made.append({"step": 100 * i, "loss": 0.5 - 0.2 * done} | values)
    return made


def test_a_healthy_run_is_learning():
    """All quantities on the right side of their alarms."""
    verdict = judge(rows())
    assert verdict.state == "learning"
    assert {f.state for f in verdict.findings} == {"good"}


@pytest.mark.parametrize(
    ("symptom", "sentence"),
    [
        ({"std_teacher": 0.1}, "features have shrunk"),
        ({"cosine_teacher": 0.97}, "Features point the same way"),
        ({"effective_rank_teacher": 30}, "Effective rank has fallen"),
        ({"explained_variance": -0.02}, "explains nothing beyond a constant"),
        ({"teacher_moved": 0.0}, "has not moved"),
    ],
)
def test_each_symptom_raises_its_alarm(symptom, sentence):
    """One bad quantity is enough, and the reason is given."""
    verdict = judge(rows(**symptom))
    assert verdict.state == "alarm"
    assert any(sentence in f.sentence for f in verdict.findings if f.state == "alarm")


def test_falling_loss_with_falling_rank_is_a_partial_collapse():
    """The loss alone would look like success; a later recovery does not hide it."""
    made = rows()
    for row in made[8:12]:
        row["diag/effective_rank_teacher"] = 20
    assert any("partial collapse" in f.sentence for f in judge(made).findings)


def test_what_an_untrained_network_has_is_no_maximum():
    """Noise has a high rank and explains less than nothing; neither was learnt, so neither can be lost."""
    made = rows()
    made[0]["diag/effective_rank_teacher"] = 200
    for row in made[:3]:
        row["diag/explained_variance"] = -0.2
    assert judge(made).state == "learning"


def test_without_diagnostics_nothing_is_claimed():
    """A loss that falls is no verdict."""
    verdict = judge([{"step": i, "loss": 1.0 - i / 100} for i in range(20)])
    assert verdict.state == "open"


def test_a_rising_loss_is_mentioned_but_no_alarm():
    """The target moves, so the loss may rise."""
    made = [row | {"loss": 0.2 + 0.02 * i} for i, row in enumerate(rows())]
    verdict = judge(made)
    assert verdict.state == "learning"
    assert any("above its minimum" in f.sentence for f in verdict.findings)


def test_a_teacher_that_hardly_moved_is_mentioned():
    """The student then still learns the features of an untrained network, however good the curves look."""
    verdict = judge(rows(teacher_moved=0.001, teacher_student_distance=0.2))
    assert any("hardly moved" in f.sentence for f in verdict.findings if f.state == "open")


def test_a_reconstruction_is_not_called_a_feature():
    """In a run of kind mae nothing is said of predicted features or of a target that moves."""
    made = rows(teacher_moved=0.001, teacher_student_distance=0.2)
    for i, row in enumerate(made):
        row["loss"] = 0.2 + 0.02 * i
    features, patches = (" ".join(f.sentence for f in judge(made, words).findings) for words in (FEATURES, PATCHES))
    assert f"explains {percent(0.3)} of the variance of the hidden patches' features" in features
    assert f"The reconstruction explains {percent(0.3)} of the variance of the hidden patches." in patches
    assert "since the target moves" in features
    assert "The target is fixed" in patches
    assert "the targets are those of an untrained network" in features
    assert "targets are those" not in patches
