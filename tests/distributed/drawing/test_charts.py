"""Line charts: what is drawn lies where the numbers say."""

import json
import math
import re
from html import unescape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.drawing.charts import (
    BOTTOM,
    FRAME,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Event,
    Series,
    Threshold,
    frame_clip,
    line_chart,
    log_ticks,
    thin_points,
    tick_label,
    ticks,
)
from distributed.drawing.wording import MINUS

finite = st.floats(-1e6, 1e6)


def series(y, label="loss"):
    return Series(label, tuple(map(float, range(len(y)))), tuple(map(float, y)))


def vertices(svg):
    path = re.search(r'class="line[^>]* d="([^"]+)"', svg).group(1)
    return [tuple(map(float, p.split())) for p in re.findall(r"[ML]([\d. -]+)", path)]


def carried(svg):
    return json.loads(unescape(re.search(r'data-points="([^"]*)"', svg).group(1)))


@given(st.lists(finite, min_size=2, max_size=50))
def test_every_point_lies_inside_the_frame_and_order_is_kept(values):
    """Higher values are drawn higher, left to right, never outside the axes."""
    chart = line_chart("Loss", "It falls.", series=[series(values)])
    points = vertices(chart.svg)
    assert len(points) == len(values)
    for x, y in points:
        assert LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1
        assert TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1
    drawn = np.array([y for _, y in points])
    order = np.argsort(values, kind="stable")
    # one decimal of a drawing unit is what the path keeps
    assert (np.diff(drawn[order]) <= 0.11).all()


def test_logarithmic_axis_spaces_decades_evenly():
    """1, 10, 100 are equally far apart."""
    chart = line_chart("Inflow", "It shrinks.", series=[series([1, 10, 100])], log=True)
    (_, a), (_, b), (_, c) = vertices(chart.svg)
    assert a - b == pytest.approx(b - c, abs=0.11)


def test_a_gap_in_the_values_is_a_gap_in_the_line():
    """NaN lifts the pen instead of inventing a value."""
    chart = line_chart("Rank", "It grows.", series=[series([1, 2, math.nan, 3, 4])])
    assert re.search(r' d="([^"]+)"', chart.svg).group(1).count("M") == 2
    assert carried(chart.svg)["series"][0]["y"][2] == "\N{EN DASH}"


def test_one_value_is_a_dot():
    """A run with a single diagnostic row still shows it."""
    chart = line_chart("Rank", "It is.", series=[Series("teacher", (5.0,), (2.0,))])
    assert '<circle class="dot' in chart.svg


@given(st.integers(MAX_POINTS + 1, 5 * MAX_POINTS))
def test_thinning_keeps_the_mean_and_the_span(count):
    """Long series become means of neighbouring runs: bounded in number, with the same average."""
    values = np.random.default_rng(count).standard_normal(count)
    thinned = thin_points(series(values))
    assert len(thinned.x) == MAX_POINTS
    assert 0 <= thinned.x[0] <= thinned.x[-1] <= count - 1
    assert list(thinned.x) == sorted(thinned.x)
    assert np.mean(thinned.y) == pytest.approx(values.mean(), abs=0.2)
    assert thin_points(series(values[:MAX_POINTS])) == series(values[:MAX_POINTS])


@given(finite, st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_and_inside(lo, span, count):
    """Steps of 1, 2 or 5 times a power of ten, not many more than asked for."""
    found = ticks(lo, lo + span, count)
    assert len(found) <= count + 1
    assert all(lo - 1e-6 * span - 1e-9 <= v <= lo + span + 1e-6 * span + 1e-9 for v in found)
    if len(found) > 1:
        step = found[1] - found[0]
        mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-6)
        assert any(mantissa == pytest.approx(m, rel=1e-2) for m in (1, 2, 5, 10))


def test_log_ticks_are_decades_or_finer():
    """Two decades or more are labelled by decades, less by 1-2-5."""
    assert log_ticks(0.5, 200) == [1, 10, 100]
    assert log_ticks(1.5, 6) == pytest.approx([2, 5])


def test_alarm_zone_lies_on_the_alarm_side():
    """A floor is shaded below its line, a ceiling above."""
    for above in (True, False):
        threshold = Threshold(0.5, "alarm", alarm_above=above)
        svg = line_chart("Cosine", "Alike.", series=[series([0, 1])], thresholds=[threshold]).svg
        line = float(re.search(r'class="alarm-line"[^>]* y1="([\d.]+)"', svg).group(1))
        top = float(re.search(r'class="alarm" [^>]*\by="([\d.]+)"', svg).group(1))
        assert (top == pytest.approx(TOP)) if above else (top == pytest.approx(line))


def test_resume_mark_stands_at_its_step():
    """The dashed line of a resume is where the curve of that step is."""
    svg = line_chart("Loss", "It falls.", series=[series(range(11))], events=[Event(5.0, "resumed")]).svg
    x = float(re.search(r'class="event" x1="([\d.]+)"', svg).group(1))
    assert x == pytest.approx(vertices(svg)[5][0], abs=0.1)


def test_what_lies_below_the_lowest_value_is_cut_off():
    """A wild start does not flatten the rest: the axis ends, and the line leaves the frame that it is clipped to."""
    svg = line_chart("Explained", "It grows.", series=[series([-5, 0, 0.5])], lowest=-0.1).svg
    points = vertices(svg)
    assert points[0][1] > HEIGHT - BOTTOM
    assert points[1][1] - points[2][1] > 0.6 * (HEIGHT - BOTTOM - TOP)
    assert f'clip-path="url(#{FRAME})"' in svg
    assert f'<clipPath id="{FRAME}"><rect x="{LEFT - 1}" y="{TOP - 1}"' in frame_clip()


def test_labels_are_escaped():
    """A name from a file cannot become markup."""
    svg = line_chart("<b>", 'a "quote"', series=[series([1, 2], "<script>")]).svg
    assert "<b>" not in svg
    assert "<script>" not in svg


def test_a_chart_without_values_is_refused():
    """Nothing to draw is an error of the caller, not an empty frame."""
    with pytest.raises(ValueError, match="no finite value"):
        line_chart("Loss", "It falls.", series=[series([math.nan, math.nan])])


def test_a_series_of_unequal_columns_is_refused():
    """x and y come in pairs."""
    with pytest.raises(ValueError, match="2 x but 1 y"):
        Series("loss", (1.0, 2.0), (1.0,))


def test_tick_labels_are_short():
    """As an axis has room for."""
    assert [tick_label(v) for v in (0, 0.25, -2.0, 1500, 20_000, 2e-5)] == [
        "0",
        "0.25",
        f"{MINUS}2",
        "1500",
        "20k",
        f"2e{MINUS}5",
    ]
