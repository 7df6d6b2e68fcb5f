"""Learning or collapsing: the diagnostics of a run read against alarm thresholds, with a verdict in plain words.

The loss of a joint-embedding model is no proof of learning: it is zero when every patch has the same feature. So the
verdict rests on quantities that a collapse cannot fake: spread, angle and rank of the features, and the variance that
the prediction explains beyond a constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from distributed.drawing.wording import fixed, percent, significant
from distributed.report.inputs import Row, column
from distributed.report.terms import FEATURES, Terms
from distributed.watch.config import GuardConfig
from distributed.watch.guard import CollapseGuard

DEFAULTS = GuardConfig()
HARDLY_MOVED = 0.1


@dataclass(frozen=True)
class Finding:
    """One test of the run: `state` is "good", "alarm" or "open" (not decided)."""

    state: str
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """`state` is "learning", "alarm" or "open"; the findings carry the reasons."""

    state: str
    headline: str
    findings: tuple[Finding, ...]


def judge(rows: Sequence[Row], terms: Terms = FEATURES, guard: GuardConfig = DEFAULTS) -> Verdict:
    """Returns the verdict on a run from its metric rows; rows without diagnostics give an open one.

    Args:
        terms: for what the run predicts.
        guard: the run's thresholds, so that its log and its page do not disagree.
    """
    found = [test(rows, guard) for test in (_spread, _angle, _rank, _joint_fall)]
    found[3:3] = [_explained(rows, terms)]
    found += [_loss_rise(rows, terms, guard), _teacher(rows, terms)]
    findings = tuple(f for f in found if f is not None)
    states = [f.state for f in findings]
    if "alarm" in states:
        return Verdict("alarm", "Watch out: signs of collapse", findings)
    if any(r.get("diag/explained_variance") is not None for r in rows) and states.count("good") >= 2:
        return Verdict("learning", "Learning, not collapsing", findings)
    return Verdict("open", "Not enough diagnostics to tell", findings)


def _spread(rows: Sequence[Row], guard: GuardConfig) -> Finding | None:
    _, values = column(rows, "diag/std_teacher")
    if not values:
        return None
    if values[-1] < guard.std_below:
        return Finding(
            "alarm",
            f"The teacher's features have shrunk: normalised spread {fixed(values[-1], 2)}, below {guard.std_below}.",
        )
    return Finding(
        "good",
        f"Features stay spread out: normalised standard deviation {fixed(values[-1], 2)} (alarm below "
        f"{guard.std_below}).",
    )


def _angle(rows: Sequence[Row], guard: GuardConfig) -> Finding | None:
    _, values = column(rows, "diag/cosine_teacher")
    if not values:
        return None
    if values[-1] > guard.cosine_above:
        return Finding(
            "alarm",
            f"Features point the same way: mean cosine {fixed(values[-1], 2)}, above {guard.cosine_above}. A common "
            "vector carries most of each feature.",
        )
    return Finding(
        "good",
        f"Features point in different directions: mean cosine {fixed(values[-1], 2)} (alarm above "
        f"{guard.cosine_above}).",
    )


def _rank(rows: Sequence[Row], guard: GuardConfig) -> Finding | None:
    at, values = column(rows, "diag/effective_rank_teacher")
    if not values:
        return None
    # what an untrained network has was never learnt
    peak, last = max((v for step, v in zip(at, values, strict=True) if step > 0), default=values[0]), values[-1]
    if last < (1 - guard.fall) * peak:
        return Finding(
            "alarm",
            f"Effective rank has fallen to {significant(last)} from a maximum of {significant(peak)}: dimensions are "
            "being given up.",
        )
    word = "grew to" if last > 1.1 * values[0] else "holds at" if last > 0.9 * values[0] else "is"
    return Finding("good", f"Effective rank {word} {significant(last)} (start {significant(values[0])}).")


def _explained(rows: Sequence[Row], terms: Terms) -> Finding | None:
    _, values = column(rows, "diag/explained_variance")
    if not values:
        return None
    last = values[-1]
    if last <= 0:
        return Finding("alarm", f"The prediction explains nothing beyond a constant: {percent(last)} of the variance.")
    _, position = column(rows, "diag/explained_variance_position")
    beyond = f", {percent(position[-1])} beyond what the position alone tells" if position else ""
    return Finding("good", f"{terms.hidden.format(percent(last))}{beyond}.")


def _joint_fall(rows: Sequence[Row], guard: GuardConfig) -> Finding | None:
    """The first step at which the run's own guard saw the loss fall together with what it must not fall with."""
    watch = CollapseGuard(guard, total_steps=len(rows))
    for row in rows:
        for alarm in watch.observe(row):
            if alarm.name == "joint fall":
                return Finding("alarm", f"At step {row['step']} {alarm.sentence}.")
    return None


def _loss_rise(rows: Sequence[Row], terms: Terms, guard: GuardConfig) -> Finding | None:
    _, losses = column(rows, "loss")
    if len(losses) < 8:
        return None
    tail = sum(losses[-4:]) / 4
    runs = [sum(losses[i : i + 4]) / 4 for i in range(len(losses) - 3)]
    if tail > (1 + guard.loss_rise) * min(runs):
        return Finding(
            "open",
            f"The loss ends {percent(tail / min(runs) - 1, 0)} above its minimum. {terms.rise}",
        )
    return None


def _teacher(rows: Sequence[Row], terms: Terms) -> Finding | None:
    _, moved = column(rows, "diag/teacher_moved")
    if not moved:
        return None
    if moved[-1] <= 0:
        return Finding("alarm", "The teacher has not moved from its first weights: its average is not being updated.")
    _, distance = column(rows, "diag/teacher_student_distance")
    if distance and moved[-1] < HARDLY_MOVED * distance[-1]:
        return Finding(
            "open",
            f"The teacher has hardly moved from its first weights ({significant(moved[-1])}, the student is "
            f"{significant(distance[-1])} away): {terms.lag}.",
        )
    return Finding("good", f"The teacher follows the student: it has moved by {significant(moved[-1])} from its start.")
