"""Learning or collapsing: a verdict from the diagnostics of a run and the guard's thresholds.

The loss of a joint-embedding model does not prove learning: it is zero if every patch has the same feature. So the
verdict uses quantities that a collapse cannot fake: spread, angle and rank of the features, and the variance that the
prediction explains beyond a constant.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from distributed.drawing.wording import fixed, percent, significant
from distributed.report.inputs import FEATURES, Row, column
from distributed.watch.config import GuardConfig
from distributed.watch.guard import CollapseGuard

DEFAULTS = GuardConfig()
HARDLY_MOVED = 0.1
SMOOTHED = 4  # rows of the loss; single ones are noisy


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


def judge(rows: Sequence[Row], words: Mapping[str, str] = FEATURES, guard: GuardConfig = DEFAULTS) -> Verdict:
    """Returns the verdict on a run from its metric rows; "open" without diagnostics.

    Args:
        words: of the run's targets (`RunInputs.words`).
        guard: thresholds of the run, so that its log and its page agree.
    """
    told = (*_features(rows, guard), *_prediction(rows, guard, words), *_teacher(rows, words))
    findings = tuple(CollapseFinding(state, sentence) for state, sentence in told)
    states = [found.state for found in findings]
    if "alarm" in states:
        return Verdict("alarm", "Watch out: signs of collapse", findings)
    # two good signs, one of them of the prediction: a lone quantity can look healthy by chance
    if column(rows, "diag/explained_variance")[1] and states.count("good") >= 2:
        return Verdict("learning", "Learning, not collapsing", findings)
    return Verdict("open", "Not enough diagnostics to tell", findings)


def _features(rows: Sequence[Row], guard: GuardConfig) -> Iterator[tuple[str, str]]:
    """Yields (state, sentence) for spread, angle and rank of the teacher's features."""
    (_, spreads), (_, cosines) = column(rows, "diag/std_teacher"), column(rows, "diag/cosine_teacher")
    if spreads:
        spread, least = fixed(spreads[-1], 2), guard.std_below
        if spreads[-1] < least:
            yield "alarm", f"The teacher's features have shrunk: normalised spread {spread}, below {least}."
        else:
            yield "good", f"Features stay spread out: normalised standard deviation {spread} (alarm below {least})."
    if cosines:
        cosine, most = fixed(cosines[-1], 2), guard.cosine_above
        if cosines[-1] > most:
            shared = "A common vector carries most of each feature."
            yield "alarm", f"Features point the same way: mean cosine {cosine}, above {most}. {shared}"
        else:
            yield "good", f"Features point in different directions: mean cosine {cosine} (alarm above {most})."
    steps, ranks = column(rows, "diag/effective_rank_teacher")
    if ranks:
        first, last = ranks[0], ranks[-1]
        # the rank of the untrained network (step 0) was not learnt, so its loss is no fall
        peak = max((rank for step, rank in zip(steps, ranks) if step > 0), default=first)
        if last < (1 - guard.fall) * peak:
            fallen = f"to {significant(last)} from a maximum of {significant(peak)}"
            yield "alarm", f"Effective rank has fallen {fallen}: the features lose dimensions."
        else:
            word = "grew to" if last > 1.1 * first else "holds at" if last > 0.9 * first else "is"
            yield "good", f"Effective rank {word} {significant(last)} (start {significant(first)})."


def _prediction(rows: Sequence[Row], guard: GuardConfig, words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields (state, sentence) for explained variance, partial collapse, and a loss that ends high."""
    _, explained = column(rows, "diag/explained_variance")
    _, position = column(rows, "diag/explained_variance_position")
    if explained:
        share = percent(explained[-1])
        if explained[-1] <= 0:
            yield "alarm", f"The prediction explains nothing beyond a constant: {share} of the variance."
        else:
            beyond = f", {percent(position[-1])} beyond the mean of each position" if position else ""
            yield "good", f"{words['hidden'].format(share)}{beyond}."
    # a loss that falls together with rank or explained variance, at any step: a later recovery does not hide it
    watch = CollapseGuard(guard, total_steps=len(rows))
    alarms = ((row["step"], alarm) for row in rows for alarm in watch.observe(row))
    yield from (("alarm", f"At step {at} {alarm.sentence}.") for at, alarm in alarms if alarm.name == "joint fall")
    _, losses = column(rows, "loss")
    if len(losses) >= 2 * SMOOTHED:
        means = [sum(losses[i : i + SMOOTHED]) / SMOOTHED for i in range(len(losses) - SMOOTHED + 1)]
        rise = means[-1] / min(means) - 1
        if rise > guard.loss_rise:
            yield "open", f"The loss ends {percent(rise, 0)} above its minimum. {words['rise']}"


def _teacher(rows: Sequence[Row], words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    _, moved = column(rows, "diag/teacher_moved")
    _, distance = column(rows, "diag/teacher_student_distance")
    if not moved:
        return
    length = significant(moved[-1])
    if moved[-1] <= 0:
        yield "alarm", "The teacher has not moved from its first weights: nothing updates its average."
    elif distance and moved[-1] < HARDLY_MOVED * distance[-1]:
        away = f"{length}, the student is {significant(distance[-1])} away"
        yield "open", f"The teacher has hardly moved from its first weights ({away}): {words['lag']}."
    else:
        yield "good", f"The teacher follows the student: it has moved by {length} from its start."
