"""Bars and beats from measures, in integers alone.

A measure of the notation is not always a bar of the metre: a piece may begin with a pickup, end with a bar that the
pickup completes, and a repeat sign may cut one bar into two measures. Those are put together again. A measure that
is too long or too short for any of these reasons is reported as unmetred: where its beats are is not settled by the
notation, and a guess would be a wrong label.
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
    """Beats, the (begin, end) passages that have none, both sorted, and the length after which all may begin again."""

    beats: tuple[Beat, ...]
    unmetred: tuple[tuple[int, int], ...]
    length: int


def beat_quarters(numerator: int, denominator: int) -> float:
    """Returns the length of a beat in quarters.

    Compound metres (6/8, 9/8, 12/8, 6/4 ...) are felt in groups of three; so is a bar of 3/8 or 3/16. All others beat
    in the unit of the denominator.
    """
    unit = 4 / denominator
    compound = numerator % 3 == 0 and (numerator > 3 or denominator >= 8)
    return 3 * unit if compound else unit


def beat_grid(measures: Sequence[Measure]) -> BarGrid:
    """Returns the beats of consecutive measures, and the length after which they may begin again.

    Args:
        measures: sorted, adjacent, of positive length.
    """
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
        elif index == 0 and bar.length < bar.nominal:
            start = end - bar.nominal
        whole = end - start == bar.nominal
        if whole or (index == last and bar.length < bar.nominal):
            beats += [beat for beat in _bar_beats(start, bar, until=end) if beat[0] >= bar.start]
            last_bar = (start, bar)
        else:
            unmetred.append((bar.start, end))
            last_bar = None
        index += 2 if joined else 1
    if last_bar is None:
        return BarGrid(tuple(beats), tuple(unmetred), end)
    length = _length_to_repeat(*last_bar, end=end, pickup=_pickup(measures))
    seam = [beat for beat in _bar_beats(last_bar[0], last_bar[1], until=length) if beat[0] >= end]
    return BarGrid((*beats, *seam), tuple(unmetred), length)


def _bar_beats(start: int, bar: Measure, *, until: int) -> list[Beat]:
    return [(tick, bar.beat, int((tick - start) % bar.nominal == 0)) for tick in range(start, until, bar.beat)]


def _complete_each_other(bar: Measure, following: Measure) -> bool:
    """Whether two measures are the halves of one bar, as around a repeat sign."""
    return following.nominal == bar.nominal == bar.length + following.length


def _pickup(measures: Sequence[Measure]) -> int:
    first = measures[0]
    if len(measures) == 1 or first.length >= first.nominal or _complete_each_other(first, measures[1]):
        return 0
    return first.length


def _length_to_repeat(start: int, bar: Measure, *, end: int, pickup: int) -> int:
    """Returns the first tick from `end` on where a repetition continues the metre of the last bar.

    That is a barline when the piece begins with a full bar, and a pickup before one otherwise.
    """
    length = start - pickup
    while length < end:
        length += bar.nominal
    return length
