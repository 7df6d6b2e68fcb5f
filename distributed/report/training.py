"""The sections on training: loss, schedules and speed, and the diagnostics of learning or collapse."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from distributed.drawing.charts import Chart, Event, Series, Threshold, line_chart
from distributed.drawing.wording import MINUS, listed
from distributed.report.collapse import Verdict, judge
from distributed.report.inputs import Missing, Row, RunInputs, column
from distributed.report.terms import terms_of
from distributed.watch.config import PROBE_MEAN, GuardConfig
from pupujepa.config import compose

# an untrained predictor is far below zero, which would flatten the rest of the curve
LOWEST_EXPLAINED = -0.1
BANDS = tuple(f"band-{i}" for i in range(8))


@dataclass(frozen=True)
class Curves:
    """Charts of one section, with a verdict for the diagnostics; `absent` names charts without data."""

    charts: tuple[Chart, ...]
    verdict: Verdict | None = None
    absent: str = ""


@dataclass(frozen=True)
class AlarmMark:
    """A threshold of the run's guard in a chart: the name of the setting, and the label."""

    setting: str
    label: str
    above: bool

    def threshold(self, guard: GuardConfig) -> Threshold:
        """Returns the line at this run's setting."""
        at = getattr(guard, self.setting)
        return Threshold(at, self.label.format(at), alarm_above=self.above)


@dataclass(frozen=True)
class _Plan:
    """The columns and the look of one chart; the page names a chart without any logged column.

    sentence: may have phrases of `Terms` in braces.
    """

    title: str
    sentence: str
    lines: tuple[tuple[str, str, str], ...]  # (key of the row, label, tone)
    thresholds: tuple[Threshold | AlarmMark, ...] = ()
    log: bool = False
    include: tuple[float, ...] = ()
    lowest: float = -math.inf


TRAINING = (
    _Plan(
        "Loss",
        "{loss}. Blocks and time spans are usually harder than scattered holes.",
        (
            ("loss", "all", "tone-1"),
            ("loss_random", "random", "tone-5"),
            ("loss_block", "block", "tone-2"),
            ("loss_time_frequency", "time-frequency", "tone-3"),
        ),
    ),
    _Plan("Learning rate", "Warm-up, then decay; each step's size is scaled by this.", (("lr", "rate", "tone-1"),)),
    _Plan(
        "Teacher's inertia",
        "One minus the EMA momentum: how much of the student flows into the teacher per step (logarithmic).",
        (("ema_inflow", f"1 {MINUS} momentum", "tone-1"),),
        log=True,
    ),
    _Plan(
        "Gradient norm",
        "Before clipping. Spikes are steps that clipping saved.",
        (("grad_norm", "norm", "tone-1"),),
    ),
    _Plan(
        "Waiting for data",
        "Share of each step spent waiting for the stream. Near zero: the shards keep up with the model.",
        (("wait_share", "share of step", "tone-1"),),
        include=(0.0,),
    ),
    _Plan("Speed", "Crops trained per second over all ranks.", (("crops_per_s", "crops/s", "tone-1"),), include=(0.0,)),
)

QUALITY = _Plan(
    "Quality while it trains",
    "Linear probes of the teacher on a fixed part of the offline benchmark, each by its task's own metric.",
    (
        ("probe/key/key_weighted", "key", "tone-1"),
        ("probe/beats/beat_f1", "beats", "tone-2"),
        ("probe/instruments/roc_auc", "instruments", "tone-3"),
        ("probe/tempo/r2", "tempo", "tone-4"),
        ("probe/collection/accuracy", "collection", "tone-5"),
        (PROBE_MEAN, "mean", "tone-6"),
    ),
)

DIAGNOSTICS = (
    _Plan(
        "Explained variance",
        "{share} beyond a constant, and beyond the mean of each position. Zero is guessing.",
        (
            ("diag/explained_variance", "beyond a constant", "tone-1"),
            ("diag/explained_variance_position", "beyond position", "tone-2"),
        ),
        (Threshold(0.0, "0 = guessing", alarm_above=False),),
        include=(0.0,),
        lowest=LOWEST_EXPLAINED,
    ),
    _Plan(
        "Explained variance by mask",
        "The same for each mask strategy. Whole spans of time are the hardest to foresee.",
        (
            ("diag/explained_variance_random", "random", "tone-5"),
            ("diag/explained_variance_block", "block", "tone-2"),
            ("diag/explained_variance_time_frequency", "time-frequency", "tone-3"),
        ),
        (Threshold(0.0, "0 = guessing", alarm_above=False),),
        include=(0.0,),
        lowest=LOWEST_EXPLAINED,
    ),
    _Plan(
        "Explained variance by band",
        "The same for each row of patches, from bass (dark) to treble (light). Each band should be learned.",
        tuple((f"diag/explained_variance_band_{i}", f"band {i + 1}", tone) for i, tone in enumerate(BANDS)),
        (Threshold(0.0, "0 = guessing", alarm_above=False),),
        include=(0.0,),
        lowest=LOWEST_EXPLAINED,
    ),
    _Plan(
        "Effective rank",
        "How many directions the features really use (RankMe). A collapse pulls it down.",
        (("diag/effective_rank_teacher", "teacher", "tone-1"), ("diag/effective_rank_student", "student", "tone-2")),
        include=(0.0,),
    ),
    _Plan(
        "Rank per frequency band",
        "The same, for patches of one row each, from bass (dark) to treble (light). No band should die.",
        tuple((f"diag/effective_rank_band_{i}", f"band {i + 1}", tone) for i, tone in enumerate(BANDS)),
        include=(0.0,),
    ),
    _Plan(
        "Rank across clips",
        "Directions that separate whole clips: RankMe of their mean features, and LiDAR, which discounts what varies "
        "within a track.",
        (("diag/effective_rank_pooled_teacher", "RankMe", "tone-1"), ("diag/lidar", "LiDAR", "tone-3")),
        include=(0.0,),
    ),
    _Plan(
        "Spread of features",
        "Normalised standard deviation; 1 means that every dimension varies equally.",
        (("diag/std_teacher", "teacher", "tone-1"), ("diag/std_student", "student", "tone-2")),
        (AlarmMark("std_below", "alarm below {:g}", above=False),),
        include=(0.0, 1.0),
    ),
    _Plan(
        "Mean cosine",
        "How alike the features of different patches are; 1 means all the same.",
        (("diag/cosine_teacher", "teacher", "tone-1"), ("diag/cosine_student", "student", "tone-2")),
        (AlarmMark("cosine_above", "alarm above {:g}", above=True),),
        include=(0.0, 1.0),
    ),
    _Plan(
        "Teacher to student",
        "Relative distance between the weights of teacher and student. Zero or endless growth would both be wrong.",
        (("diag/teacher_student_distance", "distance", "tone-1"), ("diag/teacher_moved", "moved from start", "tone-2")),
        include=(0.0,),
    ),
)


def training_section(run: RunInputs) -> Curves | Missing:
    """Returns the curves of the training itself."""
    if not run.metrics:
        return Missing("metrics.jsonl, the log of the training", "python -m distributed train --preset demo ...")
    # most runs have no corpus to probe on, so without a curve nothing is missing
    probed = any(PROBE_MEAN in row for row in run.metrics)
    charts, absent = _draw((*TRAINING, QUALITY) if probed else TRAINING, _with_shares(run.metrics), run)
    return Curves(charts, absent=absent)


def collapse_section(run: RunInputs) -> Curves | Missing:
    """Returns the diagnostic curves, their thresholds and the verdict."""
    charts, absent = _draw(DIAGNOSTICS, run.metrics, run)
    if not charts:
        return Missing(
            "the diagnostics (rows of metrics.jsonl with diag/ keys)", "python -m distributed train --preset demo ..."
        )
    return Curves(charts, judge(run.metrics, terms_of(run), guard_of(run)), absent)


def guard_of(run: RunInputs) -> GuardConfig:
    """Returns the guard's settings of a run, with the defaults for those that an old run lacks."""
    return compose(GuardConfig, presets=[run.config.get("guard") or {}])


def _draw(plans: Sequence[_Plan], rows: Sequence[Row], run: RunInputs) -> tuple[tuple[Chart, ...], str]:
    charts, absent = [], []
    phrases, events, guard = asdict(terms_of(run)), _resumes(run), guard_of(run)
    for plan in plans:
        series = [Series(label, *column(rows, key), tone=tone) for key, label, tone in plan.lines]
        series = [s for s in series if s.x]
        if not series:
            absent.append(plan.title.lower())
            continue
        charts.append(
            line_chart(
                plan.title,
                plan.sentence.format_map(phrases),
                series=series,
                thresholds=[t.threshold(guard) if isinstance(t, AlarmMark) else t for t in plan.thresholds],
                events=events,
                log=plan.log,
                include=plan.include,
                lowest=plan.lowest,
            )
        )
    return tuple(charts), f"Not logged by this run: {listed(absent)}." if absent else ""


def _with_shares(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with two columns more: the waiting share of a step, and one minus the momentum."""
    extended = []
    for row in rows:
        row = dict(row)
        if row.get("step_s") and row.get("data_wait_s") is not None:
            row["wait_share"] = min(row["data_wait_s"] / row["step_s"], 1.0)
        if row.get("ema_momentum") is not None:
            row["ema_inflow"] = 1 - row["ema_momentum"]
        extended.append(row)
    return extended


def _resumes(run: RunInputs) -> list[Event]:
    return [Event(float(r["step"]), "killed, resumed") for r in run.facts.get("resumed") or () if "step" in r]
