"""The sections on training: loss, schedules and speed, and the diagnostics of learning or collapse."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from distributed.drawing.charts import Chart, Event, Series, Threshold, line_chart
from distributed.drawing.wording import MINUS, listed
from distributed.report.collapse import judge
from distributed.report.inputs import Missing, Row, RunInputs, column
from distributed.watch.config import PROBE_MEAN, GuardConfig
from pupujepa.config import compose

TONES = tuple(f"tone-{i}" for i in range(1, 7))
STRATEGY_TONES = ("tone-5", "tone-2", "tone-3")  # random, block, time-frequency: the same in all charts
BANDS = tuple(f"band-{i}" for i in range(8))  # from bass (dark) to treble (light)
RETRAIN = "python -m distributed train --preset demo ..."


@dataclass(frozen=True)
class _Plan:
    """The columns and the look of one chart; the page names a chart without any logged column.

    sentence: may have words of `RunInputs.words` in braces.
    lines: the key of the row by the line's label.
    alarm: the guard's setting that is drawn as a threshold, such as "std_below".
    guessing: draw the line of a guess, at zero.
    """

    title: str
    sentence: str
    lines: Mapping[str, str]
    tones: tuple[str, ...] = TONES
    alarm: str = ""
    guessing: bool = False
    log: bool = False
    include: tuple[float, ...] = ()
    lowest: float = -math.inf

    def thresholds(self, guard: GuardConfig) -> list[Threshold]:
        """Returns the horizontal lines of the chart, at this run's settings."""
        if self.guessing:
            return [Threshold(0.0, "0 = guessing", alarm_above=False)]
        if not self.alarm:
            return []
        at, side = getattr(guard, self.alarm), self.alarm.rpartition("_")[2]
        return [Threshold(at, f"alarm {side} {at:g}", alarm_above=side == "above")]


# an untrained predictor is far below zero, which would flatten the rest of the curve
_explained = partial(_Plan, guessing=True, include=(0.0,), lowest=-0.1)

TRAINING = (
    _Plan(
        "Loss",
        "{loss}. Blocks and time spans are usually harder than scattered holes.",
        {"all": "loss", "random": "loss_random", "block": "loss_block", "time-frequency": "loss_time_frequency"},
        ("tone-1", *STRATEGY_TONES),
    ),
    _Plan("Learning rate", "Warm-up, then decay; each step's size is scaled by this.", {"rate": "lr"}),
    _Plan(
        "Teacher's inertia",
        "One minus the EMA momentum: how much of the student flows into the teacher per step (logarithmic).",
        {f"1 {MINUS} momentum": "ema_inflow"},
        log=True,
    ),
    _Plan("Gradient norm", "Before clipping. Spikes are steps that clipping saved.", {"norm": "grad_norm"}),
    _Plan(
        "Waiting for data",
        "Share of each step spent waiting for the stream. Near zero: the shards keep up with the model.",
        {"share of step": "wait_share"},
        include=(0.0,),
    ),
    _Plan("Speed", "Crops trained per second over all ranks.", {"crops/s": "crops_per_s"}, include=(0.0,)),
)

QUALITY = _Plan(
    "Quality while it trains",
    "Linear probes of the teacher on a fixed part of the offline benchmark, each by its task's own metric.",
    {
        "key": "probe/key/key_weighted",
        "beats": "probe/beats/beat_f1",
        "instruments": "probe/instruments/roc_auc",
        "tempo": "probe/tempo/r2",
        "collection": "probe/collection/accuracy",
        "mean": PROBE_MEAN,
    },
)

DIAGNOSTICS = (
    _explained(
        "Explained variance",
        "{share} beyond a constant, and beyond the mean of each position. Zero is guessing.",
        {"beyond a constant": "diag/explained_variance", "beyond position": "diag/explained_variance_position"},
    ),
    _explained(
        "Explained variance by mask",
        "The same for each mask strategy. Whole spans of time are the hardest to foresee.",
        {name.replace("_", "-"): f"diag/explained_variance_{name}" for name in ("random", "block", "time_frequency")},
        STRATEGY_TONES,
    ),
    _explained(
        "Explained variance by band",
        "The same for each row of patches, from bass (dark) to treble (light). Each band should be learned.",
        {f"band {i + 1}": f"diag/explained_variance_band_{i}" for i in range(8)},
        BANDS,
    ),
    _Plan(
        "Effective rank",
        "How many directions the features really use (RankMe). A collapse pulls it down.",
        {"teacher": "diag/effective_rank_teacher", "student": "diag/effective_rank_student"},
        include=(0.0,),
    ),
    _Plan(
        "Rank per frequency band",
        "The same, for patches of one row each, from bass (dark) to treble (light). No band should die.",
        {f"band {i + 1}": f"diag/effective_rank_band_{i}" for i in range(8)},
        BANDS,
        include=(0.0,),
    ),
    _Plan(
        "Rank across clips",
        "Directions that separate whole clips: RankMe of their mean features, and LiDAR, which discounts what varies "
        "within a track.",
        {"RankMe": "diag/effective_rank_pooled_teacher", "LiDAR": "diag/lidar"},
        include=(0.0,),
    ),
    _Plan(
        "Spread of features",
        "Normalised standard deviation; 1 means that every dimension varies equally.",
        {"teacher": "diag/std_teacher", "student": "diag/std_student"},
        alarm="std_below",
        include=(0.0, 1.0),
    ),
    _Plan(
        "Mean cosine",
        "How alike the features of different patches are; 1 means all the same.",
        {"teacher": "diag/cosine_teacher", "student": "diag/cosine_student"},
        alarm="cosine_above",
        include=(0.0, 1.0),
    ),
    _Plan(
        "Teacher to student",
        "Relative distance between the weights of teacher and student. Zero or endless growth would both be wrong.",
        {"distance": "diag/teacher_student_distance", "moved from start": "diag/teacher_moved"},
        include=(0.0,),
    ),
)


def training_section(run: RunInputs) -> dict[str, Any] | Missing:
    """Returns the charts of the training itself, and a sentence that names those without data."""
    if not run.metrics:
        return Missing("metrics.jsonl, the log of the training", RETRAIN)
    rows = []
    for logged in run.metrics:
        row = dict(logged)
        if row.get("step_s") and row.get("data_wait_s") is not None:
            row["wait_share"] = min(row["data_wait_s"] / row["step_s"], 1.0)
        if row.get("ema_momentum") is not None:
            row["ema_inflow"] = 1 - row["ema_momentum"]  # momenta near 1 differ only in their distance to it
        rows.append(row)
    # most runs have no corpus to probe on, so without a curve nothing is missing
    probed = any(PROBE_MEAN in row for row in rows)
    charts, absent = _draw((*TRAINING, QUALITY) if probed else TRAINING, rows, run)
    return {"charts": charts, "absent": absent}


def collapse_section(run: RunInputs) -> dict[str, Any] | Missing:
    """Returns the diagnostic charts with their thresholds, and the verdict."""
    charts, absent = _draw(DIAGNOSTICS, run.metrics, run)
    if not charts:
        return Missing("the diagnostics (rows of metrics.jsonl with diag/ keys)", RETRAIN)
    return {"charts": charts, "absent": absent, "verdict": judge(run.metrics, run.words, guard_of(run))}


def guard_of(run: RunInputs) -> GuardConfig:
    """Returns the guard's settings of a run, with the defaults for those that an old run lacks."""
    return compose(GuardConfig, presets=[run.config.get("guard") or {}])


def _draw(plans: Sequence[_Plan], rows: Sequence[Row], run: RunInputs) -> tuple[list[Chart], str]:
    charts, absent, guard = [], [], guard_of(run)
    resumed = [Event(float(r["step"]), "killed, resumed") for r in run.facts.get("resumed") or () if "step" in r]
    for plan in plans:
        lines = zip(plan.lines.items(), plan.tones, strict=False)  # there are more tones than lines
        series = [Series(label, *column(rows, key), tone=tone) for (label, key), tone in lines]
        series = [s for s in series if s.x]
        if not series:
            absent.append(plan.title.lower())
            continue
        charts.append(
            line_chart(
                plan.title,
                plan.sentence.format_map(run.words),
                series=series,
                thresholds=plan.thresholds(guard),
                events=resumed,
                log=plan.log,
                include=plan.include,
                lowest=plan.lowest,
            )
        )
    return charts, f"Not logged by this run: {listed(absent)}." if absent else ""
