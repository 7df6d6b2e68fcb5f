"""Line charts as inline SVG: pure functions from numbers to text.

All charts have one size, 380 x 220 units, and the page puts them into columns of about that width, so their text keeps
its size from a phone to a wide screen. Colours are classes (`tone-1` .. `tone-8`) of the page's style sheet, for light,
dark and print. The drawing holds its points as JSON, for the crosshair through all charts at one step.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

from distributed.drawing.wording import EN_DASH, MINUS, significant

WIDTH, HEIGHT = 380, 220  # units of the drawing, about one pixel each
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 30  # margins; the labels of the axes are in them
MAX_POINTS = 320  # no more are visible at this width, and the page holds each twice
FRAME = "chart-frame"  # id of the clip path that all charts of a page share


@dataclass(frozen=True)
class Series:
    """One line: `x` ascending, `y` of the same length; non-finite values break the line."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    tone: str = "tone-1"
    dashed: bool = False

    def __post_init__(self):
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.label!r} has {len(self.x)} x but {len(self.y)} y values; give pairs")


@dataclass(frozen=True)
class Threshold:
    """A horizontal alarm line; the side of the alarm is shaded."""

    y: float
    label: str
    alarm_above: bool


@dataclass(frozen=True)
class Event:
    """A vertical mark at a step, such as a resume."""

    x: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A drawing with its title, sentence and legend, for the template."""

    title: str
    sentence: str
    svg: str
    legend: tuple[tuple[str, str, str], ...]  # (tone, label, last value)


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic map from values to drawing units."""

    lo: float
    hi: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Returns the position of `value`."""
        lo, hi, at = (math.log(v) for v in (self.lo, self.hi, value)) if self.log else (self.lo, self.hi, value)
        return self.start + (at - lo) / (hi - lo) * (self.stop - self.start)


def line_chart(
    title: str,
    sentence: str,
    *,
    series: Sequence[Series],
    thresholds: Sequence[Threshold] = (),
    events: Sequence[Event] = (),
    marks: Sequence[Series] = (),
    log: bool = False,
    include: Sequence[float] = (),
    lowest: float = -math.inf,
    x_label: str = "step",
) -> Chart:
    """Draws lines over steps.

    Args:
        sentence: the meaning of the chart; also its description for screen readers.
        marks: drawn like series, but without legend and crosshair.
        include: values that the vertical axis must show (a zero, a threshold).
        lowest: lower limit of the vertical axis; smaller values are cut off.
        log: logarithmic vertical axis; values that are not positive break the line.

    Raises:
        ValueError: no finite value in any series.
    """
    values = [v for s in [*series, *marks] for v in s.y if math.isfinite(v) and (v > 0 or not log)]
    if not values:
        raise ValueError(f"chart {title!r} has no finite value to draw")
    x_values = [v for s in series for v in s.x]
    lo, hi = min(x_values), max(x_values)
    # one step alone stands in the middle
    x = Axis(lo, hi, LEFT, WIDTH - RIGHT) if hi > lo else Axis(lo - 0.5, hi + 0.5, LEFT, WIDTH - RIGHT)
    y = _vertical([max(v, lowest) for v in [*values, *include]], log=log)
    thinned = [thin_points(s) for s in series]
    columns = [v for v in ticks(x.lo, x.hi, 5) if x(v) < WIDTH - 40]  # the rest of the row is the axis's name
    body = [
        *level_lines(y),
        *(svg_text("tick middle", x(v), HEIGHT - BOTTOM + 15, tick_label(v)) for v in columns),
        svg_text("tick end", WIDTH - RIGHT, HEIGHT - BOTTOM + 15, x_label),
        *(_threshold(t, x, y) for t in thresholds),
        *(_event(e, x) for e in events if x.lo <= e.x <= x.hi),
        *(_line(s, x, y) for s in [*thinned, *marks]),
        svg_line("crosshair", (0, 0), (TOP, HEIGHT - BOTTOM)),
    ]
    legend = tuple((s.tone, s.label, significant(last_finite(s.y))) for s in series)
    summary = "; ".join(f"{label} ends at {value}" for _, label, value in legend)
    spoken = escape(f"{title}. {sentence} {summary}.", quote=True)
    svg = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{spoken}"'
        f' data-points="{_points(x, thinned)}">{"".join(body)}</svg>'
    )
    return Chart(title, sentence, svg, legend)


def _points(x: Axis, series: Sequence[Series]) -> str:
    """Returns the drawn points as JSON for the page's script, which shows the values at a step."""
    rows = [
        {
            "x": [round(v, 2) for v in s.x],
            "y": [significant(v, 4) if math.isfinite(v) else EN_DASH for v in s.y],
        }
        for s in series
    ]
    points = {"x0": x.lo, "x1": x.hi, "left": LEFT, "right": WIDTH - RIGHT, "series": rows}
    return escape(json.dumps(points, separators=(",", ":"), ensure_ascii=False), quote=True)


def svg_line(kind: str, x: tuple[float, float], y: tuple[float, float]) -> str:
    """Returns a line of a class of page.css, from (x[0], y[0]) to (x[1], y[1])."""
    return f'<line class="{kind}" x1="{x[0]:.1f}" x2="{x[1]:.1f}" y1="{y[0]:.1f}" y2="{y[1]:.1f}"/>'


def svg_text(kind: str, x: float, y: float, words: str) -> str:
    """Returns escaped words of a class of page.css."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def frame_clip() -> str:
    """Returns the definition of the frame that cuts lines; a page with charts holds it once."""
    return (
        f'<clipPath id="{FRAME}"><rect x="{LEFT - 1}" y="{TOP - 1}" width="{WIDTH - LEFT - RIGHT + 2}"'
        f' height="{HEIGHT - TOP - BOTTOM + 2}"/></clipPath>'
    )


def thin_points(series: Series) -> Series:
    """Returns the series as the means of at most MAX_POINTS runs of neighbours; a short one unchanged."""
    count = len(series.x)
    if count <= MAX_POINTS:
        return series
    edges = [round(i * count / MAX_POINTS) for i in range(MAX_POINTS + 1)]
    runs = list(pairwise(edges))
    x, y = (tuple(sum(values[a:b]) / (b - a) for a, b in runs) for values in (series.x, series.y))
    return replace(series, x=x, y=y)


def ticks(lo: float, hi: float, count: int = 4) -> list[float]:
    """Returns round values (1, 2 or 5 times a power of ten apart) inside [lo, hi], about `count` of them."""
    raw = (hi - lo) / max(count, 1)  # distance that would give exactly `count`
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)  # 0.999: rounding errors
    first = math.ceil(lo / step - 1e-9)  # 1e-9 keeps a tick that is the end itself
    # multiples of an integer, because a sum such as 0.1 + 0.2 would make a long label
    return [round(i * step, 12) for i in range(first, math.floor(hi / step + 1e-9) + 1)]


def log_ticks(lo: float, hi: float) -> list[float]:
    """Returns powers of ten inside [lo, hi], or 1-2-5 values if fewer than two powers are inside."""
    low, high = math.floor(math.log10(lo)), math.ceil(math.log10(hi))
    inside = [v for v in (10.0**p for p in range(low, high + 1)) if lo <= v <= hi]
    if len(inside) >= 2:
        return inside
    finer = [v for v in (m * 10.0**p for p in range(low, high + 1) for m in (1, 2, 5)) if lo <= v <= hi]
    return finer or ticks(lo, hi)


def last_finite(values: Sequence[float]) -> float:
    """Returns the last finite value, or NaN."""
    return next((v for v in reversed(values) if math.isfinite(v)), math.nan)


def _vertical(values: list[float], *, log: bool) -> Axis:
    lo, hi = min(values), max(values)
    if log:
        return Axis(lo / 1.15, hi * 1.15, HEIGHT - BOTTOM, TOP, log=True)
    margin = 0.08 * (hi - lo) or 0.1 * abs(hi) or 1.0
    # a quantity without negative values starts at zero
    floor = 0.0 if lo >= 0 and lo - margin < 0 else lo - margin
    return Axis(floor, hi + margin, HEIGHT - BOTTOM, TOP)


def level_lines(y: Axis) -> list[str]:
    """Draws a line across the chart, with its label, at each round value of a vertical axis."""
    return [
        svg_line("grid", (LEFT, WIDTH - RIGHT), (y(v), y(v)))
        + svg_text("tick end", LEFT - 6, y(v) + 3.5, tick_label(v))
        for v in (log_ticks(y.lo, y.hi) if y.log else ticks(y.lo, y.hi))
    ]


def tick_label(value: float) -> str:
    """Returns a short label: 0, 0.25, 1500, 12k, 2e−5."""
    if value and abs(value) < 1e-3:
        return significant(value, 2).replace(".0e", "e")
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}".replace("-", MINUS)


def _threshold(threshold: Threshold, x: Axis, y: Axis) -> str:
    if not y.lo <= threshold.y <= y.hi:
        return ""
    at, edge = y(threshold.y), TOP if threshold.alarm_above else HEIGHT - BOTTOM
    # the label is outside the alarm zone
    label_y = at + 12 if threshold.alarm_above else at - 5
    return (
        f'<rect class="alarm" x="{LEFT}" y="{min(at, edge):.1f}" width="{x.stop - LEFT:.1f}"'
        f' height="{abs(at - edge):.1f}"/>'
        + svg_line("alarm-line", (LEFT, WIDTH - RIGHT), (at, at))
        + svg_text("alarm-label end", WIDTH - RIGHT - 2, label_y, threshold.label)
    )


def _event(event: Event, x: Axis) -> str:
    at = x(event.x)
    side, offset = ("end", -4) if at > WIDTH * 0.7 else ("start", 4)  # the label must not leave the frame
    mark = svg_line("event", (at, at), (TOP, HEIGHT - BOTTOM))
    return mark + svg_text(f"event-label {side}", at + offset, TOP + 8, event.label)


def _line(series: Series, x: Axis, y: Axis) -> str:
    drawn = [
        (x(a), y(b)) if math.isfinite(b) and (b > 0 or not y.log) else None
        for a, b in zip(series.x, series.y, strict=True)
    ]
    path, pen_down = [], False
    for point in drawn:
        if point is not None:
            path.append(f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        pen_down = point is not None  # a gap lifts the pen, so that no line bridges missing values
    classes = f"line {series.tone}" + (" dashed" if series.dashed else "")
    # a path of one point draws nothing, so a single value is a dot
    dots = [p for p in drawn if p is not None]
    if len(dots) == 1:
        return f'<circle class="dot {series.tone}" cx="{dots[0][0]:.1f}" cy="{dots[0][1]:.1f}" r="3"/>'
    return f'<path class="{classes}" clip-path="url(#{FRAME})" d="{"".join(path)}"/>'
