"""Do the diagnostics of a run tell how well its checkpoints probe? Rank correlations over checkpoints, and a picture.

  python -m distributed correlate runs/tiny                          the run's own rows: diag/* against probe/*
  python -m distributed correlate runs/tiny --score probe/key/key_weighted --plot tiny.svg
  python -m distributed correlate --evaluated O                      encoders that were evaluated into one folder

The first needs a run that was probed while it trained (probe.*). For the second, export several checkpoints and
evaluate them together; RankMe and LiDAR come from `--quick`, scores from both kinds of evaluation:

  for step in 10000 20000 40000; do python -m distributed export runs/tiny --step $step --out ckpt/step-$step; done
  python -m distributed evaluate --encoders ckpt/* --data corpora/scores --out O
  python -m distributed evaluate --encoders ckpt/* --data corpora/scores --out O --quick

Writes correlations.json and correlations.svg (or the picture of --plot; .png works too) and prints the table.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from scipy.stats import spearmanr

from distributed.checkpoint_points import FEWEST, Points, points_of_results, points_of_run
from distributed.run_directory import RunDirectory, write_json
from pupujepa.errors import UserError

MEAN_OF_PROBES = "probe/mean"
# in the picture: those that the guard or the literature watches, then whatever else there is
SHOWN_FIRST = (
    "diag/effective_rank_teacher",
    "diag/effective_rank_pooled_teacher",
    "diag/lidar",
    "diag/explained_variance",
    "diag/std_teacher",
    "diag/cosine_teacher",
    "diag/teacher_student_distance",
    "loss",
)
MOST_PANELS = 9
MOST_NAMES = 12
JSON_NAME, PLOT_NAME = "correlations.json", "correlations.svg"


@dataclass(frozen=True)
class Correlation:
    """Of one diagnostic with one score.

    Attributes:
        rho: Spearman's; None where one of the two never changes.
        rho_of_changes: of the changes from one checkpoint to the next, which what merely grows with time does not
            drive; None where it does not exist, or points are no sequence.
    """

    diagnostic: str
    score: str
    n: int
    rho: float | None
    rho_of_changes: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("run_dir", nargs="?", type=Path, metavar="RUN", help="run directory with metrics.jsonl")
    parser.add_argument(
        "--evaluated", type=Path, metavar="DIR", help="folder that evaluations were written to, instead"
    )
    parser.add_argument(
        "--score", metavar="NAME", help=f"score of the picture (default: {MEAN_OF_PROBES}, or the first)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="picture (default: correlations.svg beside the data)")


def run(args: argparse.Namespace) -> int:
    """Reads the points, writes the numbers and the picture, and prints the table."""
    if (args.run_dir is None) == (args.evaluated is None):
        raise UserError("give a run directory, or --evaluated with a folder of results; one of them, not both")
    folder = args.run_dir or args.evaluated
    points = points_of_run(RunDirectory(folder)) if args.run_dir else points_of_results(folder)
    score = _score(points, args.score)
    found = correlations(points)
    note = caution(points)
    write_json(
        folder / JSON_NAME,
        {"points": points.names, "note": note, "correlations": [vars(c) for c in found]},
    )
    plot = args.plot or folder / PLOT_NAME
    draw(points, [c for c in found if c.score == score], plot, note=note)
    print(table([c for c in found if c.score == score]))  # noqa: T201 - the table is the product
    print(f"{note}\nAll scores: {folder / JSON_NAME}; picture: {plot}")  # noqa: T201
    return 0


def correlations(points: Points) -> list[Correlation]:
    """Returns the correlation of every diagnostic with every score."""
    return [_correlation(points, diagnostic, score) for score in points.scores for diagnostic in points.diagnostics]


def caution(points: Points) -> str:
    """Says what so many points can and cannot show."""
    n = len(points.names)
    chance = 1.96 / math.sqrt(n - 1)
    note = f"n = {n}: no order of so few points would be surprising."
    if chance < 1:
        count = len(points.diagnostics)
        note = (
            f"n = {n}: unrelated quantities exceed |rho| = {chance:.2f} once in twenty times; so would about "
            f"{count / 20:.1f} of these {count} diagnostics."
        )
    if points.in_sequence:
        note += (
            " Checkpoints of one run are not independent: whatever drifts with the step correlates with whatever "
            "improves with it, so rho of the changes between neighbours stands beside rho."
        )
    return note


def table(found: Sequence[Correlation]) -> str:
    """Returns a Markdown table, the strongest first."""
    order = sorted(found, key=lambda c: -abs(c.rho or 0.0))
    lines = [f"| diagnostic | rho with {found[0].score} | of changes | n |", "|---|---|---|---|"]
    lines += [f"| {c.diagnostic} | {_number(c.rho)} | {_number(c.rho_of_changes)} | {c.n} |" for c in order]
    return "\n".join(lines)


def draw(points: Points, found: Sequence[Correlation], path: Path, *, note: str) -> None:
    """Writes a scatter of each diagnostic against the score, with a key of the checkpoints, later ones darker."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    watched = [c for name in SHOWN_FIRST for c in found if c.diagnostic == name]
    shown = [*watched, *(c for c in found if c not in watched)][:MOST_PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.1 * rows + 1.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    # from the second colour on: the palest is hardly seen on white
    colours = colormaps["viridis_r"].resampled(len(points.names) + 1)(range(1, len(points.names) + 1))
    for axis, correlation in zip(axes.flat, shown, strict=False):
        x, y = points.diagnostics[correlation.diagnostic], points.scores[correlation.score]
        there = [i for i, at in enumerate(zip(x, y, strict=True)) if None not in at]
        axis.scatter([x[i] for i in there], [y[i] for i in there], color=colours[there], s=28)
        axis.set_title(_title(correlation), fontsize=10)
        axis.set_xlabel(correlation.diagnostic, fontsize=9)
        axis.set_ylabel(correlation.score, fontsize=9)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    stride = -(-len(points.names) // MOST_NAMES)
    key = [Line2D([], [], marker="o", linestyle="", color=colour) for colour in colours[::stride]]
    figure.legend(key, points.names[::stride], loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle(note, fontsize=8, wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _score(points: Points, wanted: str | None) -> str:
    if wanted is not None and wanted not in points.scores:
        raise UserError(f"there is no score {wanted!r}; there are {', '.join(points.scores)}")
    return wanted or (MEAN_OF_PROBES if MEAN_OF_PROBES in points.scores else next(iter(points.scores)))


def _correlation(points: Points, diagnostic: str, score: str) -> Correlation:
    pairs = points.pairs(diagnostic, score)
    changes = [(_change(a[0], b[0]), _change(a[1], b[1])) for a, b in pairwise(pairs)] if points.in_sequence else []
    return Correlation(diagnostic, score, len(pairs), _rho(pairs), _rho(changes))


def _change(before: float, after: float) -> float:
    """Returns the change without its rounding error: scores of few items move by equal steps, which must be ties."""
    return round(after - before, 12)


def _rho(pairs: Sequence[tuple[float, float]]) -> float | None:
    if len(pairs) < FEWEST or any(len(set(values)) == 1 for values in zip(*pairs)):
        return None
    return float(spearmanr(*zip(*pairs)).statistic)


def _title(correlation: Correlation) -> str:
    changes = "" if correlation.rho_of_changes is None else f", of changes {_number(correlation.rho_of_changes)}"
    return f"rho {_number(correlation.rho)}{changes}, n {correlation.n}"


def _number(rho: float | None) -> str:
    return "-" if rho is None else f"{rho:+.2f}"
