"""Population based training: who is replaced by a copy of whom, and with which values it goes on. Pure functions.

Jaderberg et al. 2017 (arXiv 1711.09846): the members of a population train side by side; from time to time those at the
bottom take over weights, optimiser and place in the order from those at the top, and go on with changed settings.

Tune's own scheduler of this name draws from the global generator and keeps who copied whom in memory, so a driver that
is killed cannot repeat it. Here a decision depends on the sweep file, the seed and the recorded qualities alone.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from sweeps.axes import RANDOM, AxisConfig, SweepConfig, labels
from sweeps.points import Point, drawn, grid, in_range, settings


@dataclass(frozen=True)
class Member:
    """A place in a population and who has it.

    Attributes:
        number: of the place, from 1 on.
        trial: name of the run that has it.
        values: of the axes, by their labels.
        quality: mean of its probes in training; None when it has none, as it diverged.
    """

    number: int
    trial: str
    values: Mapping[str, str]
    quality: float | None = None

    @property
    def is_alive(self) -> bool:
        """True when there is a quality to compare."""
        return self.quality is not None and math.isfinite(self.quality)


@dataclass(frozen=True)
class Decision:
    """What becomes of a member: it goes on as it is, or as a copy of another one with other values."""

    member: Member
    copies: Member | None
    values: Mapping[str, str]


def points_of(sweep: SweepConfig) -> list[Point]:
    """Returns where the members of a population begin."""
    return drawn(sweep) if sweep.plan == RANDOM else grid(sweep)


def decide(members: Sequence[Member], sweep: SweepConfig, *, generation: int) -> list[Decision]:
    """Returns what becomes of each member, in their order.

    Replaced are those without a quality, which count as the worst, and who else of the lowest quantile is worse than
    all of the highest; of equals the first counts as better. Each takes another of the highest as long as there are
    such, and no two go on from the same one with the same values as long as there are others.

    Args:
        generation: of the decision, from 1 on; each has draws of its own.
    """
    rng = random.Random(f"{sweep.seeds[0]}/{generation}")
    alive = sorted((m for m in members if m.is_alive), key=lambda m: (-(m.quality or 0.0), m.number))
    count = min(math.ceil(sweep.scheduler.quantile * len(members)), len(members) // 2)
    top, lowest = alive[:count], alive[len(members) - count :]
    behind = {m.number for m in lowest if (m.quality or 0.0) < (top[-1].quality or 0.0)}
    sources = rng.sample(top, len(top))
    taken: set[tuple[str, ...]] = set()
    decisions = []
    for member in members:
        if not sources or (member.is_alive and member.number not in behind):
            decisions.append(Decision(member, None, member.values))
            continue
        source = sources.pop(0)
        sources.append(source)
        options = [neighbours(sweep, name, value) or [value] for name, value in source.values.items()]
        every = [(source.trial, *values) for values in product(*options)]
        chosen = rng.choice([values for values in every if values not in taken] or every)
        taken.add(chosen)
        decisions.append(Decision(member, source, dict(zip(source.values, chosen[1:]))))
    return decisions


def neighbours(sweep: SweepConfig, name: str, value: str) -> list[str]:
    """Returns what a value of an axis may change to: the values beside it, or it times a factor within the range."""
    axis = sweep.axes[name]
    if not axis.is_range:
        there = labels(axis)
        at = there.index(value)
        return [*there[max(0, at - 1) : at], *there[at + 1 : at + 2]]
    moved = (_within(axis, float(value) * factor) for factor in sweep.scheduler.factors)
    return [found for found in dict.fromkeys(in_range(name, axis, number).value for number in moved) if found != value]


def point_at(sweep: SweepConfig, values: Mapping[str, str]) -> Point:
    """Returns the settings of values by their labels."""
    by_axis = settings(sweep)
    return tuple(
        in_range(name, sweep.axes[name], float(value))
        if sweep.axes[name].is_range
        else next(setting for setting in by_axis[name] if setting.value == value)
        for name, value in values.items()
    )


def _within(axis: AxisConfig, number: float) -> float:
    assert axis.low is not None and axis.high is not None
    return min(max(number, axis.low), axis.high)
