"""Learning or collapsing: a verdict from the diagnostics of a run and the guard's thresholds.

The loss of a joint-embedding model does not prove learning: it is zero if every patch has the same feature. So the
verdict uses quantities that a collapse cannot fake: spread, angle and rank of the features, and the variance that the
prediction explains beyond a constant.
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
class CollapseFinding:
    """The result of one test: `state` is "good", "alarm" or "open" (undecided)."""

    state: str
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run: `state` is "learning", "alarm" or "open"; the findings are its reasons."""

    state: str
    headline: str
    findings: tuple[CollapseFinding, ...]


def judge(rows: Sequence[Row], terms: Terms = FEATURES, guard: GuardConfig = DEFAULTS) -> Verdict:
    """Returns the verdict on a run from its metric rows; "open" without diagnostics.

    Args:
        terms: words for the targets of the run.
        guard: thresholds of the run, so that its log and its page agree.
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


def _spread(rows: Sequence[Row], guard: GuardConfig) -> CollapseFinding | None:
    _, values = column(rows, "diag/std_teacher")
    if not values:
        return None
    if values[-1] < guard.std_below:
        return CollapseFinding(
            "alarm",
            f"The teacher's features have shrunk: normalised spread {fixed(values[-1], 2)}, below {guard.std_below}.",
        )
    return CollapseFinding(
        "good",
        f"Features stay spread out: normalised standard deviation {fixed(values[-1], 2)} (alarm below "
        f"{guard.std_below}).",
    )


def _angle(rows: Sequence[Row], guard: GuardConfig) -> CollapseFinding | None:
    _, values = column(rows, "diag/cosine_teacher")
    if not values:
        return None
    if values[-1] > guard.cosine_above:
        return CollapseFinding(
            "alarm",
            f"Features point the same way: mean cosine {fixed(values[-1], 2)}, above {guard.cosine_above}. A common "
            "vector carries most of each feature.",
        )
    return CollapseFinding(
        "good",
        f"Features point in different directions: mean cosine {fixed(values[-1], 2)} (alarm above "
        f"{guard.cosine_above}).",
    )


def _rank(rows: Sequence[Row], guard: GuardConfig) -> CollapseFinding | None:
    at, values = column(rows, "diag/effective_rank_teacher")
    if not values:
        return None
    # the rank of the untrained network (step 0) was not learnt, so its loss is no fall
    peak, last = max((v for step, v in zip(at, values, strict=True) if step > 0), default=values[0]), values[-1]
    if last < (1 - guard.fall) * peak:
        return CollapseFinding(
            "alarm",
            f"Effective rank has fallen to {significant(last)} from a maximum of {significant(peak)}: the features "
            "lose dimensions.",
        )
    word = "grew to" if last > 1.1 * values[0] else "holds at" if last > 0.9 * values[0] else "is"
    return CollapseFinding("good", f"Effective rank {word} {significant(last)} (start {significant(values[0])}).")


def _explained(rows: Sequence[Row], terms: Terms) -> CollapseFinding | None:
    _, values = column(rows, "diag/explained_variance")
    if not values:
        return None
    last = values[-1]
    if last <= 0:
        return CollapseFinding(
            "alarm", f"The prediction explains nothing beyond a constant: {percent(last)} of the variance."
        )
    _, position = column(rows, "diag/explained_variance_position")
    beyond = f", {percent(position[-1])} beyond the mean of each position" if position else ""
    return CollapseFinding("good", f"{terms.hidden.format(percent(last))}{beyond}.")


def _joint_fall(rows: Sequence[Row], guard: GuardConfig) -> CollapseFinding | None:
    """Returns the guard's first alarm of a loss that fell together with rank or explained variance."""
    watch = CollapseGuard(guard, total_steps=len(rows))
    for row in rows:
        for alarm in watch.observe(row):
            if alarm.name == "joint fall":
                return CollapseFinding("alarm", f"At step {row['step']} {alarm.sentence}.")
    return None


def _loss_rise(rows: Sequence[Row], terms: Terms, guard: GuardConfig) -> CollapseFinding | None:
    _, losses = column(rows, "loss")
    if len(losses) < 8:
        return None
    tail = sum(losses[-4:]) / 4
    runs = [sum(losses[i : i + 4]) / 4 for i in range(len(losses) - 3)]
    if tail > (1 + guard.loss_rise) * min(runs):
        return CollapseFinding(
            "open",
            f"The loss ends {percent(tail / min(runs) - 1, 0)} above its minimum. {terms.rise}",
        )
    return None


def _teacher(rows: Sequence[Row], terms: Terms) -> CollapseFinding | None:
    _, moved = column(rows, "diag/teacher_moved")
    if not moved:
        return None
    if moved[-1] <= 0:
        return CollapseFinding(
            "alarm", "The teacher has not moved from its first weights: nothing updates its average."
        )
    _, distance = column(rows, "diag/teacher_student_distance")
    if distance and moved[-1] < HARDLY_MOVED * distance[-1]:
        return CollapseFinding(
            "open",
            f"The teacher has hardly moved from its first weights ({significant(moved[-1])}, the student is "
            f"{significant(distance[-1])} away): {terms.lag}.",
        )
    return CollapseFinding(
        "good", f"The teacher follows the student: it has moved by {significant(moved[-1])} from its start."
    )
