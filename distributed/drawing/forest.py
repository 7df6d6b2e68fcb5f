"""Intervals and shares as inline SVG: forest plots of differences, and a bar of seconds per phase."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from distributed.drawing.charts import Axis, svg_line, svg_text, tick_label, ticks
from distributed.drawing.tables import ABSENT, Cell
from distributed.drawing.wording import duration, fixed, interval, percent

CELL_WIDTH, CELL_HEIGHT = 190, 26
WIDTH, ROW_HEIGHT = 380, 26


@dataclass(frozen=True)
class Difference:
    """A paired difference with its 95 % interval."""

    label: str
    value: float
    lo: float
    hi: float
    tone: str = "tone-1"

    @property
    def words(self) -> str:
        """The value with its interval."""
        return f"{fixed(self.value, sign=True)} {interval(self.lo, self.hi)}"

    @property
    def half_width(self) -> float:
        """Half of the interval's width, in the metric's units."""
        return (self.hi - self.lo) / 2

    @property
    def exceeds(self) -> bool:
        """True for a gain above the interval's half-width."""
        return self.value > self.half_width


def shared_axis(differences: Sequence[Difference], start: float, stop: float) -> Axis:
    """Returns one axis with zero for all rows, so that a reader can compare lengths down the column."""
    ends = [0.0, *(v for d in differences for v in (d.lo, d.hi, d.value) if math.isfinite(v))]
    lo, hi = min(ends), max(ends)
    margin = 0.08 * (hi - lo) or 1.0  # all zero: an axis of some width all the same
    return Axis(lo - margin, hi + margin, start, stop)


def forest_column(title: str, differences: Sequence[Difference | None]) -> tuple[Cell, list[Cell], str]:
    """Returns a table column: its head with the scale, a drawing per difference, and `Table.zero`."""
    axis = shared_axis([d for d in differences if d], 6, CELL_WIDTH - 6)
    cells = [Cell("", drawing=forest_cell(d, axis)) if d else ABSENT for d in differences]
    return Cell(title, drawing=forest_axis(axis)), cells, f"{axis(0) / CELL_WIDTH:.2%}"


def forest_cell(difference: Difference, axis: Axis) -> str:
    """Draws one row of a forest plot for a table cell; the cell's background is the zero line."""
    label = escape(f"{difference.label}: {difference.words}", quote=True)
    return (
        f'<svg class="forest-cell" viewBox="0 0 {CELL_WIDTH} {CELL_HEIGHT}" role="img" aria-label="{label}">'
        f"{whisker(difference, axis, CELL_HEIGHT / 2)}</svg>"
    )


def forest_axis(axis: Axis) -> str:
    """Draws the scale of a column of `forest_cell`."""
    scale = _scale(axis, ticks(axis.lo, axis.hi, 3), lines=(14, 18), words_y=11)
    return f'<svg class="forest-cell" viewBox="0 0 {CELL_WIDTH} 18" aria-hidden="true">{scale}</svg>'


def forest_plot(differences: Sequence[Difference], *, title: str, scale_of: Sequence[Difference] = ()) -> str:
    """Draws labelled differences in rows; `scale_of` widens the axis to the range of other plots."""
    height = ROW_HEIGHT * len(differences) + 26
    axis = shared_axis([*differences, *scale_of], 156, WIDTH - 8)
    scale = _scale(axis, ticks(axis.lo, axis.hi, 4), lines=(0, height - 22), words_y=height - 6)
    rows = "".join(
        svg_text("row-label", 0, ROW_HEIGHT * (i + 0.5) + 4, d.label) + whisker(d, axis, ROW_HEIGHT * (i + 0.5))
        for i, d in enumerate(differences)
    )
    zero = svg_line("zero", (axis(0), axis(0)), (0, height - 22))
    spoken = "; ".join(f"{d.label} {d.words}" for d in differences)
    return (
        f'<svg class="forest" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="{escape(f"{title}: {spoken}", quote=True)}">{scale}{zero}{rows}</svg>'
    )


def whisker(difference: Difference, axis: Axis, y: float) -> str:
    """Draws the interval as a line and the value as a dot, hollow unless it exceeds the half-width."""
    title = f"{difference.label}: {difference.words}"
    hollow = "" if difference.exceeds else " hollow"
    return (
        f'<g class="whisker {difference.tone}"><title>{escape(title)}</title>'
        f'<line x1="{axis(difference.lo):.1f}" x2="{axis(difference.hi):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<circle class="{("point" + hollow)}" cx="{axis(difference.value):.1f}" cy="{y:.1f}" r="4.5"/></g>'
    )


def share_bar(seconds: Sequence[tuple[str, float]]) -> str:
    """Draws seconds per phase as one stacked bar; the legend beside it has the numbers."""
    total = sum(value for _, value in seconds)
    parts, at = [], 0.0
    for index, (phase, value) in enumerate(seconds):
        width = 1000 * value / total  # of a view box that the page stretches
        parts.append(
            f'<rect class="fill tone-{index % 8 + 1}" x="{at:.1f}" y="0" width="{max(width - 2, 0.5):.1f}" height="18">'
            f"<title>{escape(phase)}: {duration(value)}, {percent(value / total)}</title></rect>"
        )
        at += width
    spoken = ", ".join(f"{phase} {duration(value)}" for phase, value in seconds)
    return (
        '<svg class="share-bar" viewBox="0 0 1000 18" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(f"Seconds per phase: {spoken}", quote=True)}">{"".join(parts)}</svg>'
    )


def _scale(axis: Axis, values: Sequence[float], *, lines: tuple[float, float], words_y: float) -> str:
    """Draws vertical lines with signed labels."""
    return "".join(
        svg_line("grid", (axis(v), axis(v)), lines)
        + svg_text("tick middle", axis(v), words_y, f"+{tick_label(v)}" if v > 0 else tick_label(v))
        for v in values
    )
