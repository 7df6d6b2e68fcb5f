"""Charts of a sweep's page: differences, parallel coordinates, quality over crops, and the front.

They share sizes, colours and axes with the charts of a run's page (distributed/drawing).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from distributed.drawing.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Chart,
    Series,
    level_lines,
    line_chart,
    tick_label,
    ticks,
)
from distributed.drawing.forest import Difference, forest_column
from distributed.drawing.tables import Cell, Group, Table
from distributed.drawing.wording import fixed, significant
from sweeps.plan.sweep_file import BASE
from sweeps.results.outcomes import Point, front
from sweeps.results.tables import TERA

TONES = 8
SCORE = "mean of the tasks"
# parallel coordinates: units between two axes, above, below and beside them, and characters of a label
GAP, HEAD, FOOT, SIDE, MOST = 150, 44, 16, 80, 20
TALL = 260


@dataclass(frozen=True)
class Change(Difference):
    """A row of a forest plot; unlike a gain, a change counts in both directions."""

    @property
    def exceeds(self) -> bool:
        """True when the interval excludes zero."""
        return self.lo > 0 or self.hi < 0


def delta_table(task: str, title: str, found: Sequence[Point]) -> Table | None:
    """Returns a forest plot of the differences to the base on a task, a row per value; None without any."""
    deltas = [(point.label, point.deltas[task]) for point in found if task in point.deltas]
    if not deltas:
        return None
    changes = [Change(label, delta.value, delta.lo, delta.hi) for label, delta in deltas]
    scale, drawings, zero = forest_column("difference to the base", changes)
    rows = tuple((Cell(change.label), drawing) for change, drawing in zip(changes, drawings, strict=True))
    return Table(title, (Cell("value"), scale), (Group("", rows),), zero=zero)


def quality_chart(found: Sequence[Point]) -> Chart | None:
    """Returns the quality of probes in training over crops, a line per value; None without probes."""
    curves = [point for point in found if len(point.curve) > 1]
    if not curves:
        return None
    series = [
        Series(point.label, *_columns(point.curve), tone=tone(i), dashed=i >= TONES) for i, point in enumerate(curves)
    ]
    return line_chart(
        "Quality over crops",
        "Mean of the probes in training, on pieces of the validation split. Compare trials at equal crops.",
        series=series,
        x_label="crops",
    )


def pareto_chart(found: Sequence[Point]) -> Chart | None:
    """Returns quality over operations with its Pareto front; None without results."""
    scored = [(point, point.score) for point in found if point.score is not None]
    if not scored:
        return None
    best = front(found)
    flops, scores = [p.flops / TERA for p, _ in scored], [score for _, score in scored]
    margin = 0.08 * (max(scores) - min(scores)) or 0.05
    x = Axis(min(flops) / 1.4, max(flops) * 1.4, LEFT, WIDTH - RIGHT, log=True)
    y = Axis(min(scores) - margin, max(scores) + margin, HEIGHT - BOTTOM, TOP)
    path = "L".join(f"{x(p.flops / TERA):.1f} {y(p.score or 0.0):.1f}" for p in best)
    parts = [*_frame(x, y), f'<path class="line tone-5" d="M{path}"/>']
    for point, score in scored:
        said = f"{point.label}: {fixed(score)} at {significant(point.flops / TERA)} TFLOP"
        kind = "point" if point in best else "point hollow"
        parts.append(
            f'<g class="whisker {tone(0 if point.axis == BASE else 1)}"><title>{escape(said)}</title>'
            f'<circle class="{kind}" cx="{x(point.flops / TERA):.1f}" cy="{y(score):.1f}" r="4.5"/></g>'
        )
    spoken = "; ".join(f"{p.label} {fixed(p.score or 0.0)} at {significant(p.flops / TERA)} TFLOP" for p in best)
    sentence = f"{SCORE.capitalize()} over operations of training. Filled: no other value is as good at this cost."
    legend = tuple((tone(0 if p.axis == BASE else 1), p.label, fixed(p.score or 0.0)) for p in best)
    svg = _drawing(WIDTH, HEIGHT, f"{sentence} On the front: {spoken}", parts, "pareto")
    return Chart("Quality and operations", sentence, svg, legend)


def parallel_coordinates(found: Sequence[Point]) -> str:
    """Draws a line per value through all varied settings to its quality; "" without results."""
    scored = [point for point in found if point.score is not None]
    keys = list(dict.fromkeys(key for point in scored for key in point.differs))
    if not keys:
        return ""
    usual = {key: pair[0] for point in scored for key, pair in point.differs.items()}
    levels = {key: _levels(usual[key], [p.differs[key][1] for p in scored if key in p.differs]) for key in keys}
    scores = [point.score or 0.0 for point in scored]
    margin = 0.05 * (max(scores) - min(scores)) or 0.05
    quality = Axis(min(scores) - margin, max(scores) + margin, TALL - FOOT, HEAD)
    width = SIDE + GAP * len(keys) + SIDE
    parts = [_column(SIDE + GAP * i, key, levels[key]) for i, key in enumerate(keys)]
    parts.append(_score_column(width - SIDE, quality))
    best = max(scores)
    # the base last, so that its line is on top
    for point, score in sorted(zip(scored, scores), key=lambda pair: pair[0].axis == BASE):
        here = [point.differs[key][1] if key in point.differs else usual[key] for key in keys]
        path = [(SIDE + GAP * i, _level_y(levels[k], v)) for i, (k, v) in enumerate(zip(keys, here))]
        text = "L".join(f"{px:.1f} {py:.1f}" for px, py in [*path, (width - SIDE, quality(score))])
        look = "tone-1" if point.axis == BASE else "tone-2" if score == best else "tone-5 dashed"
        title = f"<title>{escape(point.label)}: {fixed(score)}</title>"
        parts.append(f'<path class="line {look}" d="M{text}">{title}</path>')
    spoken = "; ".join(f"{point.label} {fixed(score)}" for point, score in zip(scored, scores))
    return _drawing(width, TALL, f"Parallel coordinates, ending at the {SCORE}: {spoken}", parts, "parallel")


def tone(number: int) -> str:
    """Returns the CSS class of a line's colour."""
    return f"tone-{number % TONES + 1}"


def _columns(curve: Sequence[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(x for x, _ in curve), tuple(y for _, y in curve)


def _levels(usual: Any, others: Sequence[Any]) -> list[Any]:
    """Returns the distinct values: numbers sorted, others in their order."""
    values = [usual]
    for value in others:
        if value not in values:
            values.append(value)
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return sorted(values) if numeric else values


def _level_y(levels: Sequence[Any], value: Any) -> float:
    share = (levels.index(value) + 0.5) / len(levels)
    return TALL - FOOT - share * (TALL - FOOT - HEAD)


def _column(at: float, key: str, levels: Sequence[Any]) -> str:
    section, _, name = key.rpartition(".")
    marks = "".join(
        f'<text class="tick start" x="{at + 5}" y="{_level_y(levels, value) - 5:.1f}">{escape(_short(value))}</text>'
        for value in levels
    )
    return (
        f'<line class="grid" x1="{at}" x2="{at}" y1="{HEAD}" y2="{TALL - FOOT}"/>'
        f'<text class="tick middle" x="{at}" y="14">{escape(section)}</text>'
        f'<text class="row-label middle" x="{at}" y="30">{escape(_short(name))}</text>{marks}'
    )


def _score_column(at: float, quality: Axis) -> str:
    marks = "".join(
        f'<text class="tick start" x="{at + 6}" y="{quality(v) + 3.5:.1f}">{escape(tick_label(v))}</text>'
        for v in ticks(quality.lo, quality.hi, 4)
    )
    return (
        f'<line class="zero" x1="{at}" x2="{at}" y1="{HEAD}" y2="{TALL - FOOT}"/>'
        f'<text class="row-label middle" x="{at}" y="30">{SCORE}</text>{marks}'
    )


def _frame(x: Axis, y: Axis) -> list[str]:
    ends = [
        f'<text class="tick {side}" x="{at}" y="{HEIGHT - BOTTOM + 15}">{escape(significant(value))}{unit}</text>'
        for value, at, side, unit in ((x.lo, LEFT, "start", ""), (x.hi, WIDTH - RIGHT, "end", " TFLOP, log"))
    ]
    return [*level_lines(y), *ends]


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MOST else text[: MOST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _drawing(width: int, height: int, spoken: str, parts: Sequence[str], name: str) -> str:
    return (
        f'<svg class="{name}" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{escape(spoken, quote=True)}">{"".join(parts)}</svg>'
    )
