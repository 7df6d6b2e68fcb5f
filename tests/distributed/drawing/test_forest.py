"""Forest plots: intervals lie where the numbers say, and a dot is filled only when the gain exceeds its doubt."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.drawing.forest import (
    CELL_WIDTH,
    WIDTH,
    Difference,
    forest_axis,
    forest_cell,
    forest_plot,
    share_bar,
    shared_axis,
)
from distributed.drawing.wording import MINUS


@given(st.floats(-1, 1), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_interval_and_point_are_drawn_to_scale(value, below, above):
    """The whisker runs from lo to hi of the axis, inside the cell, and the point stands at the value."""
    difference = Difference("key", value, value - below, value + above)
    axis = shared_axis([difference], 6, CELL_WIDTH - 6)
    svg = forest_cell(difference, axis)
    x1, x2 = (float(re.search(rf' {name}="([\d.-]+)"', svg).group(1)) for name in ("x1", "x2"))
    x = float(re.search(r'cx="([\d.-]+)"', svg).group(1))
    assert (x1, x, x2) == pytest.approx((axis(difference.lo), axis(value), axis(difference.hi)), abs=0.06)
    assert 6 <= x1 <= x <= x2 <= CELL_WIDTH - 6
    assert 6 <= axis(0) <= CELL_WIDTH - 6


@pytest.mark.parametrize(("value", "filled"), [(0.06, True), (0.04, False), (-0.2, False)])
def test_a_dot_is_filled_when_the_gain_exceeds_the_half_width(value, filled):
    """0.05 is the half-width here; a loss is never a gain, however large."""
    difference = Difference("key", value, value - 0.05, value + 0.05)
    assert difference.exceeds is filled
    assert ("hollow" not in forest_cell(difference, shared_axis([difference], 0, 100))) is filled


def test_rows_of_a_plot_share_one_scale():
    """Plots side by side can be compared when they are given each other's values."""
    small, large = Difference("a", 0.1, 0.05, 0.15), Difference("b", 0.8, 0.7, 0.9)
    alone = forest_plot([small], title="t")
    beside = forest_plot([small], title="t", scale_of=[large])
    both = forest_plot([small, large], title="t")
    first_point = [float(re.search(r'cx="([\d.]+)"', svg).group(1)) for svg in (alone, beside, both)]
    assert first_point[1] == first_point[2] < first_point[0] <= WIDTH


def test_a_plot_reads_its_numbers_aloud():
    """The alternative text holds each label, value and interval."""
    svg = forest_plot([Difference("Key <1>", -0.021, -0.062, 0.019)], title="Trained minus random init")
    assert f'aria-label="Trained minus random init: Key &lt;1&gt; {MINUS}0.021 [{MINUS}0.062, 0.019]"' in svg
    assert "<1>" not in svg


def test_axis_marks_zero():
    """Readers find zero on the scale of a column."""
    assert ">0</text>" in forest_axis(shared_axis([Difference("a", 0.1, 0.05, 0.15)], 0, 100))


def test_phase_bar_is_in_proportion():
    """Each phase is as wide as its share of the seconds."""
    svg = share_bar([("train", 300.0), ("report", 100.0)])
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]
    assert widths == pytest.approx([748, 248])
    assert "train: 5 min 00 s, 75.0" in svg
