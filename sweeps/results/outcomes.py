"""Outcomes of a sweep: a row per trial, and the difference of each axis value to the base.

There are two kinds of interval, and each names its kind. With two or more seeds: Student's t over the differences,
paired by seed, which has the spread between runs. With one seed the interval covers only the choice of test items, not
other seeds. It combines both runs' bootstrap intervals as if the runs were independent: conservative, because they
share their items.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from scipy.stats import t as student_t

from distributed.run.log import read_metrics
from sweeps.plan.compose import IRRELEVANT
from sweeps.plan.plan import Plan, PlannedTrial
from sweeps.plan.points import SEED_KEYS
from sweeps.plan.sweep_file import BASE
from sweeps.trials.record import read_record, read_trial_results, score_on
from sweeps.trials.trial import METRICS, qualities

LEVEL = 0.95


@dataclass(frozen=True)
class Delta:
    """A difference to the base with its 95 % interval, over seeds or over items."""

    value: float
    lo: float
    hi: float
    over: Literal["seeds", "items"]

    @property
    def is_clear(self) -> bool:
        """True when the interval excludes zero."""
        return self.lo > 0 or self.hi < 0


@dataclass(frozen=True)
class Point:
    """One value of one axis, over all seeds.

    Attributes:
        rows: rows of its trials, from `trial_rows`.
        differs: settings that differ from the base, `{key: (base, here)}`.
        values: mean over seeds, by task.
        deltas: by task; empty for the base, and for a value without results.
        curve: quality of the probes in training, (crops, mean over seeds); empty without such probes.
    """

    axis: str
    value: str
    rows: tuple[dict[str, Any], ...]
    differs: dict[str, tuple[Any, Any]]
    values: dict[str, float]
    deltas: dict[str, Delta]
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def label(self) -> str:
        """Name in tables."""
        return BASE if self.axis == BASE else f"{self.axis} = {self.value}"

    @property
    def score(self) -> float | None:
        """Mean of the tasks' values, each in its own metric; None without results."""
        return fmean(self.values.values()) if self.values else None

    @property
    def flops(self) -> int:
        """Operations of one training."""
        return int(self.rows[0]["flops"])


def trial_rows(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """Returns the rows of sweep.jsonl, one per trial, with failed and interrupted ones."""
    bases = {planned.trial.seed: planned for planned in plan.trials if planned.trial.is_base}
    rows = [_row(planned, bases[planned.trial.seed], plan, out) for planned in plan.trials]
    of_base = {row["seed"]: row["results"] for row in rows if row["axis"] == BASE}
    for row in rows:
        row["delta"] = {} if row["axis"] == BASE else _item_deltas(row["results"], of_base[row["seed"]])
    return rows


def points(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Returns the base and every axis value, with differences to the base, in the order of the plan."""
    of_base = {row["seed"]: row for row in rows if row["axis"] == BASE}
    places = dict.fromkeys((row["axis"], row["value"]) for row in rows)
    return [_point([dict(r) for r in rows if (r["axis"], r["value"]) == place], of_base) for place in places]


def front(points: Sequence[Point]) -> list[Point]:
    """Returns the Pareto front of quality over operations, the cheapest point first."""
    best: list[Point] = []
    scored = [(point, point.score) for point in points]
    for point, score in sorted(scored, key=lambda pair: (pair[0].flops, -(pair[1] or 0.0))):
        if score is not None and (not best or score > (best[-1].score or 0.0)):
            best.append(point)
    return best


def seed_delta(differences: Sequence[float]) -> Delta:
    """Returns the mean of two or more differences paired by seed, with Student's t interval."""
    count = len(differences)
    mean = sum(differences) / count
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (count - 1))
    half = float(student_t.ppf((1 + LEVEL) / 2, count - 1)) * deviation / math.sqrt(count)
    return Delta(mean, mean - half, mean + half, "seeds")


def item_delta(here: Mapping[str, Any], base: Mapping[str, Any]) -> Delta:
    """Returns here - base with an interval from both results' intervals (Zou and Donner 2008, MOVER)."""
    value = here["value"] - base["value"]
    below = math.hypot(here["value"] - here["interval"][0], base["interval"][1] - base["value"])
    above = math.hypot(here["interval"][1] - here["value"], base["value"] - base["interval"][0])
    return Delta(value, value - below, value + above, "items")


def _row(planned: PlannedTrial, base: PlannedTrial, plan: Plan, out: Path) -> dict[str, Any]:
    record = read_record(planned, out)
    results = {row["task"]: score_on(plan.launch.compare_on, row) for row in read_trial_results(planned, out)}
    stands_for = [name for name, other in plan.same_as.items() if other == planned.trial.name]
    return {
        "name": planned.trial.name,
        "axis": planned.trial.axis,
        "value": planned.trial.value,
        "seed": planned.trial.seed,
        "status": record.status,
        "reason": record.reason,
        "log_tail": list(record.log_tail),
        "directory": planned.directory,
        "also": stands_for,
        "differs": differing(base.settings, planned.settings),
        "steps": planned.steps,
        "crops": planned.samples,
        "flops": planned.flops,
        "model": planned.model,
        "curve": [] if planned.model else _curve(planned, out),
        "train_s": round(record.train_s, 1),
        "evaluate_s": round(record.evaluate_s, 1),
        "results": results,
    }


def _curve(planned: PlannedTrial, out: Path) -> list[list[float]]:
    path = out / planned.directory / METRICS
    rows = read_metrics(path) if path.is_file() else []
    return [[found["samples"], found["quality"]] for found in qualities(planned, rows)]


def differing(base: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns `{key: [base, here]}` for all settings that can change a result, without seeds."""
    keys = [key for key in here if not key.startswith(IRRELEVANT) and key not in SEED_KEYS]
    return {key: [base.get(key), here[key]] for key in keys if base.get(key) != here[key]}


def _item_deltas(here: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    deltas = {task: item_delta(here[task], base[task]) for task in here if task in base}
    return {t: {"value": d.value, "interval": [d.lo, d.hi], "over": d.over} for t, d in deltas.items()}


def _point(rows: Sequence[dict[str, Any]], of_base: Mapping[int, Mapping[str, Any]]) -> Point:
    tasks = list(dict.fromkeys(task for row in rows for task in row["results"]))
    is_base = rows[0]["axis"] == BASE
    values, deltas = {}, {}
    for task in tasks:
        measured = [row for row in rows if task in row["results"]]
        values[task] = sum(row["results"][task]["value"] for row in measured) / len(measured)
        pairs = [(r["results"][task], of_base[r["seed"]]["results"].get(task)) for r in measured]
        # a seed counts only if its base has results too
        whole = [(here, base) for here, base in pairs if base is not None]
        if whole and not is_base:
            differences = [here["value"] - base["value"] for here, base in whole]
            deltas[task] = seed_delta(differences) if len(whole) > 1 else item_delta(*whole[0])
    differs = {key: (pair[0], pair[1]) for key, pair in rows[0]["differs"].items()}
    return Point(rows[0]["axis"], rows[0]["value"], tuple(rows), differs, values, deltas, _mean_curve(rows))


def _mean_curve(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[float, float], ...]:
    """Returns (crops, mean quality) over the seeds that have reached these crops."""
    at: dict[float, list[float]] = {}
    for row in rows:
        for samples, quality in row["curve"]:
            at.setdefault(samples, []).append(quality)
    return tuple((samples, fmean(values)) for samples, values in sorted(at.items()))
