"""Checkpoints as points: what was diagnosed of each, and how it probed.

Two sources: the rows that a run logs about itself, and encoders that were evaluated into one folder.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.marble.encoders import BASELINES
from distributed.marble.light_probes import FEW_SHOT, KNN, SPECTRUM
from distributed.marble.quick import read_quick
from distributed.marble.results import read_results
from distributed.run_directory import RunDirectory
from distributed.telemetry import read_metrics
from pupujepa.errors import UserError

FEWEST = 3
DIAGNOSTIC, PROBE = "diag/", "probe/"
_ALSO_DIAGNOSTIC = ("loss",)

Columns = dict[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Points:
    """Diagnostics and scores by name, a value (or None) for every point.

    Attributes:
        in_sequence: whether the points are one run's, in the order of steps.
    """

    names: tuple[str, ...]
    diagnostics: Columns
    scores: Columns
    in_sequence: bool

    def pairs(self, diagnostic: str, score: str) -> list[tuple[float, float]]:
        """Returns (diagnostic, score) of the points that have both."""
        both = zip(self.diagnostics[diagnostic], self.scores[score], strict=True)
        return [(x, y) for x, y in both if x is not None and y is not None]


def points_of_run(run: RunDirectory) -> Points:
    """Pairs every probe of a run with the newest diagnostics that are not later; none is used twice.

    The untrained network of step 0 is no checkpoint, as random_init is none: far from all others, it would tell that
    training helps, and be most of any correlation.

    Raises:
        UserError: no metrics, or too few steps with both.
    """
    if not run.metrics.is_file():
        raise UserError(f"no {run.metrics.name} in {run.root}, so there is nothing to correlate; give a run directory")
    known: dict[str, float] = {}
    fresh = False
    found: list[tuple[int, Mapping[str, float]]] = []
    for row in _by_step(read_metrics(run.metrics)):
        # what was no number is null in the log
        row = {key: value for key, value in row.items() if value is not None}
        diagnosed = {k: float(v) for k, v in row.items() if k.startswith(DIAGNOSTIC) or k in _ALSO_DIAGNOSTIC}
        fresh = fresh or any(k.startswith(DIAGNOSTIC) for k in diagnosed)
        known |= diagnosed
        probed = {k: float(v) for k, v in row.items() if k.startswith(PROBE)}
        if probed and fresh:
            if row["step"] > 0:
                found.append((row["step"], known | probed))
            fresh = False
    _require(len(found), f"{run.root} has", "set probe.data and probe.every_steps, and train on")
    keys = sorted({k for _, values in found for k in values})
    columns = {k: tuple(_finite(values.get(k)) for _, values in found) for k in keys}
    return Points(
        names=tuple(f"step {step}" for step, _ in found),
        diagnostics={k: v for k, v in columns.items() if not k.startswith(PROBE)},
        scores={k: v for k, v in columns.items() if k.startswith(PROBE)},
        in_sequence=True,
    )


def points_of_results(folder: Path) -> Points:
    """Takes every encoder of a folder but the baselines: RankMe and LiDAR of its last layer, and all its scores.

    Raises:
        UserError: too few encoders, or none with spectra.
    """
    quick = read_quick(folder)
    diagnosed: dict[str, dict[str, float]] = {}
    scored: dict[str, dict[str, float]] = {}
    for row in quick:
        if row["check"] == SPECTRUM:
            for name, title in (("rank", "RankMe"), ("lidar", "LiDAR")):
                if row[name]:
                    diagnosed.setdefault(row["encoder"], {})[f"{title}, {row['task']}"] = row[name][-1]
        elif row["check"] in (KNN, FEW_SHOT):
            how = KNN if row["check"] == KNN else f"{row['shots']}-shot"
            scored.setdefault(row["encoder"], {})[f"{row['task']}, {how}"] = row["value"]
    for row in read_results(folder):
        scored.setdefault(row["encoder"], {})[f"{row['task']}, probe, {row['protocol']}"] = row["value"]
    names = [name for name in diagnosed if name in scored and name not in BASELINES]
    _require(len(names), f"{folder} has", "evaluate more checkpoints into it, with --quick and without")
    return Points(tuple(names), _columns(diagnosed, names), _columns(scored, names), in_sequence=False)


def _by_step(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Joins the rows of each step; of a step that was trained again, later rows count."""
    joined: dict[int, dict[str, Any]] = {}
    for row in rows:
        joined.setdefault(row["step"], {}).update(row)
    return [joined[step] for step in sorted(joined)]


def _columns(values: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> Columns:
    keys = sorted({key for name in names for key in values[name]})
    return {key: tuple(_finite(values[name].get(key)) for name in names) for key in keys}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _require(count: int, where: str, remedy: str) -> None:
    if count < FEWEST:
        raise UserError(
            f"{where} {count} checkpoints with diagnostics and probe scores, and a correlation takes at least "
            f"{FEWEST}; {remedy}"
        )
