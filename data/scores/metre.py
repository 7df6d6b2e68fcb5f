"""Bars and beats from measures, in integers only.

A measure of the notation is not always a bar of the metre: a piece may begin with a pickup and end with a bar that
completes it, and a repeat sign may cut a bar into two measures, which are joined. Any other measure of a wrong length
is unmetred: the notation does not determine its beats, and a guess would be a wrong label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# (tick, ticks to the next beat of this metre, 1 for a downbeat)
Beat = tuple[int, int, int]


@dataclass(frozen=True)
class Measure:
    """A measure of the notation, in ticks.

    Attributes:
        length: from its start to the start of the next one.
        nominal: length of a bar by the time signature in force.
        beat: length of a beat by the time signature in force.
    """

    start: int
    length: int
    nominal: int
    beat: int


@dataclass(frozen=True)
class BarGrid:
    """Sorted beats and unmetred (begin, end) passages, and the length after which the piece can repeat."""

    beats: tuple[Beat, ...]
    unmetred: tuple[tuple[int, int], ...]
    length: int


def beat_quarters(numerator: int, denominator: int) -> float:
    """Returns the length of a beat in quarters.

    Compound metres (6/8, 9/8, 12/8, 6/4 ...) and 3/8 or 3/16 beat in groups of three, all others in the unit of the
    denominator.
    """
    unit = 4 / denominator
    compound = numerator % 3 == 0 and (numerator > 3 or denominator >= 8)
    return 3 * unit if compound else unit


def beat_grid(measures: Sequence[Measure]) -> BarGrid:
    """Returns the beats of sorted, adjacent measures of positive length."""
    beats: list[Beat] = []
    unmetred: list[tuple[int, int]] = []
    last_bar: tuple[int, Measure] | None = None
    last, index = len(measures) - 1, 0
    while index <= last:
        bar = measures[index]
        start, end = bar.start, bar.start + bar.length
        joined = index < last and _complete_each_other(bar, measures[index + 1])
        if joined:
            end += measures[index + 1].length
        elif index == 0 and bar.length < bar.nominal:  # a pickup: its bar begins before it
            start = end - bar.nominal
        whole = end - start == bar.nominal
        if whole or (index == last and bar.length < bar.nominal):  # the last bar may be short
            beats += [beat for beat in _bar_beats(start, bar, until=end) if beat[0] >= bar.start]
            last_bar = (start, bar)
        else:
            unmetred.append((bar.start, end))
            last_bar = None
        index += 2 if joined else 1
    if last_bar is None:
        return BarGrid(tuple(beats), tuple(unmetred), end)
    # a repetition continues the metre at the next barline, less the pickup if there is one
    first = measures[0]
    whole = last == 0 or first.length >= first.nominal or _complete_each_other(first, measures[1])
    length = last_bar[0] - (0 if whole else first.length)
    while length < end:
        length += last_bar[1].nominal
    seam = [beat for beat in _bar_beats(last_bar[0], last_bar[1], until=length) if beat[0] >= end]  # beats of the gap
    return BarGrid((*beats, *seam), tuple(unmetred), length)


def _bar_beats(start: int, bar: Measure, *, until: int) -> list[Beat]:
    return [(tick, bar.beat, int((tick - start) % bar.nominal == 0)) for tick in range(start, until, bar.beat)]


def _complete_each_other(bar: Measure, following: Measure) -> bool:
    """Returns True if two measures are parts of one bar, as around a repeat sign."""
    return following.nominal == bar.nominal == bar.length + following.length
