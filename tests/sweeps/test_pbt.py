"""Decisions of a population: pure functions of the sweep, the seed and the qualities."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.axes import AxisConfig, BaseConfig, SchedulerConfig, SweepConfig
from sweeps.pbt import Member, decide, neighbours, point_at, points_of

RATES = AxisConfig("schedule.peak_lr", [0.001, 0.002, 0.004, 0.008])
RANGE = AxisConfig("optimizer.weight_decay", low=0.01, high=0.1, log=True)
MASKS = AxisConfig(values={"few": {"masks.ratio": 0.5}, "many": {"masks.ratio": 0.9, "masks.random": 1}})
SWEEP = SweepConfig(
    base=BaseConfig(), axes={"rate": RATES, "decay": RANGE, "masks": MASKS}, plan="random", draws=8, seeds=[3],
    scheduler=SchedulerConfig("pbt"),
)  # fmt: skip
VALUES = {"rate": "0.002", "decay": "0.05", "masks": "few"}


def population(*qualities):
    return [Member(number, f"run{number}", VALUES, quality) for number, quality in enumerate(qualities, 1)]


def replaced(*qualities, generation=1):
    found = decide(population(*qualities), SWEEP, generation=generation)
    return {d.member.number: d.copies.number for d in found if d.copies}


def test_the_lowest_quantile_copies_the_highest():
    """Two of eight, each from another of the two best; the others go on with their values."""
    found = decide(population(0.3, 0.1, 0.5, 0.2, 0.8, 0.6, 0.7, 0.4), SWEEP, generation=1)
    assert [d.member.number for d in found] == list(range(1, 9))
    assert {d.member.number: d.copies.number for d in found if d.copies}.keys() == {2, 4}
    assert {d.copies.number for d in found if d.copies} == {5, 7}
    assert all(d.values == VALUES for d in found if not d.copies)
    assert all(d.values != VALUES for d in found if d.copies)


def test_small_populations_replace_at_least_one_and_at_most_half():
    """A quarter of three is one; a half of three, rounded up, would take the middle one too."""
    assert replaced(0.1, 0.2, 0.3) == {1: 3}
    assert replaced(0.2, 0.1) == {2: 1}


def test_equals_are_not_replaced_by_each_other():
    """Nobody is behind when all are equal; of equals at the cut the later ones count as worse."""
    assert replaced(0.5, 0.5, 0.5, 0.5) == {}
    assert replaced(0.1, 0.1, 0.1, 0.9) == {3: 4}


@pytest.mark.parametrize("lost", [None, math.nan, math.inf])
def test_who_has_diverged_is_always_replaced(lost):
    """However many they are, by whoever is left at the top; nobody takes the place of a population without members."""
    assert replaced(lost, 0.1, 0.2, lost) == {1: 3, 4: 3}
    assert replaced(lost, lost, lost, 0.1) == {1: 4, 2: 4, 3: 4}
    assert replaced(lost, lost) == {}


def test_copies_of_one_run_differ_as_long_as_they_can():
    """Three copies of the only one alive begin with three sets of values."""
    found = decide(population(None, None, None, 0.1), SWEEP, generation=1)
    assert len({tuple(d.values.items()) for d in found}) == 4
    assert {tuple(d.values) for d in found} == {tuple(VALUES)}


@given(st.lists(st.none() | st.floats(-1, 1) | st.just(math.nan), min_size=2, max_size=12), st.integers(1, 5))
def test_a_decision_is_a_function_of_the_qualities(qualities, generation):
    """The same again; who is copied has a quality above those whom it replaces; values are on the axes."""
    first = decide(population(*qualities), SWEEP, generation=generation)
    again = decide(population(*qualities), SWEEP, generation=generation)
    assert repr(again) == repr(first)  # from Python 3.13 on, a dataclass that holds nan does not equal itself
    for decision in first:
        if decision.copies is not None:
            assert decision.copies.is_alive
            assert not decision.member.is_alive or decision.member.quality < decision.copies.quality
        settings = {s.axis: s.overrides for s in point_at(SWEEP, decision.values)}
        assert 0.01 <= float(settings["decay"][0].partition("=")[2]) <= 0.1
    alive = any(member.is_alive for member in population(*qualities))
    assert all(d.copies or d.member.is_alive for d in first) or not alive


def test_generations_draw_for_themselves():
    """The same qualities do not lead to the same changes again and again."""
    chosen = Counter(
        tuple(d.values.values())
        for generation in range(1, 40)
        for d in decide(population(0.1, 0.5), SWEEP, generation=generation)
        if d.copies
    )
    assert set(chosen) == {(rate, decay, "many") for rate in ("0.001", "0.004") for decay in ("0.04", "0.0625")}


def test_values_change_to_those_beside_them():
    """A list has two neighbours, at its ends one; a range two factors, and the bound where they lead out of it."""
    assert neighbours(SWEEP, "rate", "0.002") == ["0.001", "0.004"]
    assert neighbours(SWEEP, "rate", "0.008") == ["0.004"]
    assert neighbours(SWEEP, "masks", "few") == ["many"]
    assert neighbours(SWEEP, "decay", "0.05") == ["0.04", "0.0625"]
    assert neighbours(SWEEP, "decay", "0.09") == ["0.072", "0.1"]
    assert neighbours(SWEEP, "decay", "0.1") == ["0.08"]


def test_a_population_begins_at_its_draws():
    """As many as `draws` says, each with a value on every axis, the same for the same file."""
    points = points_of(SWEEP)
    assert len(points) == 8
    assert points == points_of(SWEEP)
    assert {tuple(setting.axis for setting in point) for point in points} == {("rate", "decay", "masks")}
