"""Numbers as text: what is printed is the number, rounded, and never claims a sign that its digits do not show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.drawing.wording import (
    MINUS,
    THIN_SPACE,
    audio_length,
    compact,
    count_of,
    duration,
    fixed,
    grouped,
    interval,
    listed,
    percent,
    scientific,
    significant,
)


@given(st.floats(-1e4, 1e4), st.integers(0, 4))
def test_fixed_reads_back_as_the_rounded_number(value, digits):
    """The text is within half a unit of its last digit."""
    text = fixed(value, digits)
    assert float(text.replace(MINUS, "-")) == pytest.approx(value, abs=0.5 * 10**-digits + 1e-9)
    assert "-" not in text


def test_zero_has_no_sign():
    """A difference that rounds to zero is neither a gain nor a loss."""
    assert fixed(-0.0004) == fixed(0.0004, sign=True) == "0.000"
    assert (fixed(0.02, sign=True), fixed(-0.02, sign=True)) == ("+0.020", f"{MINUS}0.020")


@given(st.floats(1e-9, 1e9))
def test_significant_reads_back_within_its_digits(value):
    """Three digits, whatever the magnitude."""
    text = significant(value).replace(MINUS, "-").replace(THIN_SPACE, "")
    assert float(text) == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.81, "0.8 s"), (42.4, "42 s"), (59.6, "1 min 00 s"), (331, "5 min 31 s"), (11_100, "3 h 05 min")],
)
def test_duration_has_two_units(seconds, text):
    """As people say it."""
    assert duration(seconds) == text


def test_words():
    """The rest, each by example."""
    assert listed([]) == ""
    assert listed(["key", "tempo", "beats"]) == "key, tempo and beats"
    assert (count_of(1, "rank"), count_of(2, "rank")) == ("1 rank", "2 ranks")
    assert grouped(7117440) == f"7{THIN_SPACE}117{THIN_SPACE}440"
    assert [compact(v) for v in (950, 7_117_440, 403e6)] == ["950", f"7.1{THIN_SPACE}M", f"403{THIN_SPACE}M"]
    assert percent(0.0123) == f"1.2{THIN_SPACE}%"
    assert (audio_length(7.123), audio_length(0.5)) == ("7.12 h", "30 min")
    assert scientific(0.0003, 0) == f"3e{MINUS}4"
    assert interval(-0.0621, 0.0191) == f"[{MINUS}0.062, 0.019]"
    assert significant(float("nan")) == "not finite"
