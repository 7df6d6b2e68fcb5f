"""Trials from axes: one axis at a time, the whole grid, or random draws; pure functions.

A point is at most one setting of each axis. An axis with a condition (`when`) exists only beside the values that it
names. One at a time, its values come with them; in a grid and in draws, points without them leave it out.
"""

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pupujepa.errors import UserError
from sweeps.plan.sweep_file import (
    BASE,
    GRID,
    ONE_AT_A_TIME,
    RANDOM,
    AxisConfig,
    SweepConfig,
    allowed,
    label_of,
    override,
)

SEED_KEYS = ("train.seed", "stream.seed")  # initial weights; order, crops and masks
STEPS, TOKENS, FLOPS = EQUALS = ("steps", "tokens", "flops")
# options of the evaluator that an axis may vary, with their defaults
EVALUATE_DEFAULTS = {
    "evaluate.which": "teacher",
    "evaluate.readout": "frames",
    "evaluate.rope": "as trained",
    "evaluate.window": "a training crop",
}
SHARE = "data.share"
# a draw that repeats an earlier point is drawn again, within limits: axes of few values have few points
_DRAWS_PER_POINT = 50


@dataclass(frozen=True)
class Setting:
    """One value of one axis: its label and its overrides."""

    axis: str
    value: str
    overrides: tuple[str, ...]


Point = tuple[Setting, ...]


@dataclass(frozen=True)
class Trial:
    """One run to train and probe: the base with a few keys changed.

    `axis` and `value` are "base" and "" for the base; a point of several axes joins them with " + ".

    Attributes:
        overrides: of the trainer.
        presets: recipes on top of the base's.
        equal: quantity shared with the base instead of the budget: "" (none), steps, tokens or flops.
        share: of the shards to train on.
        evaluate: options of the evaluator as (name, value), in the order of EVALUATE_DEFAULTS.
    """

    name: str
    axis: str
    value: str
    seed: int
    overrides: tuple[str, ...]
    presets: tuple[str, ...] = ()
    equal: str = ""
    share: float = 1.0
    evaluate: tuple[tuple[str, str], ...] = ()

    @property
    def is_base(self) -> bool:
        """True for the trial that all differences refer to."""
        return self.axis == BASE

    @property
    def own_settings(self) -> dict[str, Any]:
        """The sweep's own settings, by dotted key, with defaults."""
        chosen = {f"evaluate.{name}": value for name, value in self.evaluate}
        return EVALUATE_DEFAULTS | chosen | {SHARE: self.share}

    def encoder(self, model_dir: str) -> str:
        """Returns the evaluator's name of the model in `model_dir` with this trial's options."""
        words = [value if name in ("which", "readout") else f"{name}={value}" for name, value in self.evaluate]
        return ":".join([model_dir, *words])


def settings(sweep: SweepConfig) -> dict[str, tuple[Setting, ...]]:
    """Returns the settings of every axis by its name, in the order of the file; none for a range."""
    return {name: tuple(_settings_of(name, axis)) for name, axis in sweep.axes.items()}


def expand(sweep: SweepConfig, *, shared: Sequence[str] = ()) -> list[Trial]:
    """Returns the trials of a sweep: for each seed the base, then the points of the plan, if any.

    Args:
        shared: overrides of all trials, after the base's and before the axes', which have priority.

    Raises:
        UserError: an unknown key or value of the sweep's own settings.
    """
    points: Iterable[Point] = ()
    if sweep.plan == ONE_AT_A_TIME:
        points = one_at_a_time(sweep)
    elif sweep.plan == GRID:
        points = grid(sweep) if sweep.axes else ()
    elif sweep.plan == RANDOM:
        points = drawn(sweep)
    return [trial_at(sweep, point, seed, shared=shared) for seed in sweep.seeds for point in [(), *points]]


def one_at_a_time(sweep: SweepConfig) -> list[Point]:
    """Returns each setting alone, a conditional one beside the first value that allows it."""
    by_axis = settings(sweep)

    def needed(name: str) -> Point:
        before: list[Setting] = []
        for parent, condition in sweep.axes[name].when.items():
            chosen = next(s for s in by_axis[parent] if s.value in allowed(condition))
            before += [s for s in (*needed(parent), chosen) if s not in before]
        return tuple(before)

    return [(*needed(name), setting) for name, several in by_axis.items() for setting in several]


def grid(sweep: SweepConfig) -> list[Point]:
    """Returns the product of all axes, without settings that cannot exist."""
    points: list[Point] = [()]
    for name, several in settings(sweep).items():
        axis = sweep.axes[name]
        points = [
            new for point in points for new in ([(*point, s) for s in several] if exists(axis, point) else [point])
        ]
    return points


def drawn(sweep: SweepConfig) -> list[Point]:
    """Returns `draws` different random points, the same for the same file; fewer if fewer exist."""
    rng, by_axis = random.Random(0), settings(sweep)
    found: dict[Point, None] = {}
    for _ in range(sweep.draws * _DRAWS_PER_POINT):
        if len(found) < sweep.draws:
            found[draw_point(sweep, lambda name, axis: _draw(rng, axis, by_axis[name]))] = None
    return list(found)


def draw_point(sweep: SweepConfig, choose: Callable[[str, AxisConfig], Setting | float]) -> Point:
    """Returns the point of the settings that `choose` gives for each axis; a number for a range."""
    point: Point = ()
    for name, axis in sweep.axes.items():
        if exists(axis, point):
            chosen = choose(name, axis)
            point = (*point, chosen if isinstance(chosen, Setting) else in_range(name, axis, chosen))
    return point


def in_range(name: str, axis: AxisConfig, value: float) -> Setting:
    """Returns the setting of a number, rounded to three digits for the label and the training alike."""
    rounded = float(f"{value:.3g}")
    return Setting(name, f"{rounded:g}", (override(str(axis.key), rounded),))


def exists(axis: AxisConfig, point: Point) -> bool:
    """Returns True if an axis exists beside the settings of a point."""
    here = {setting.axis: setting.value for setting in point}
    return all(here.get(parent) in allowed(condition) for parent, condition in axis.when.items())


def trial_at(sweep: SweepConfig, point: Point, seed: int, *, shared: Sequence[str] = ()) -> Trial:
    """Returns the trial of a point and a seed."""
    axis = " + ".join(setting.axis for setting in point) or BASE
    value = " + ".join(setting.value for setting in point)
    label = ",".join(f"{setting.axis}={setting.value}" for setting in point) or BASE
    base = tuple(override(key, value) for key, value in sweep.base.overrides.items())
    varied = tuple(text for setting in point for text in setting.overrides)
    seeded = tuple(override(key, seed) for key in SEED_KEYS)
    bare = Trial(f"{_file_name(label)}-seed{seed}", axis, value, seed, ())
    return _with_overrides(bare, (*base, *shared, *seeded, *varied))


def _with_overrides(trial: Trial, texts: Sequence[str]) -> Trial:
    """Returns the trial with the trainer's overrides and the sweep's own settings set apart."""
    trainers: list[str] = []
    presets: list[str] = []
    looks: dict[str, str] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if key == "preset":
            presets.append(value)
        elif key == "equal":
            if value not in EQUALS:
                raise UserError(f"axis {trial.axis!r}: equal: {value} is not one of {', '.join(EQUALS)}")
            trial = replace(trial, equal=value)
        elif key == SHARE:
            trial = replace(trial, share=_share(trial, value))
        elif key in EVALUATE_DEFAULTS:
            looks[key] = value
        elif key.startswith("evaluate."):
            raise UserError(
                f"axis {trial.axis!r}: {key} is not an option of a sweep; known: {', '.join(EVALUATE_DEFAULTS)}"
            )
        else:
            trainers.append(text)
    evaluate = tuple((key.removeprefix("evaluate."), looks[key]) for key in EVALUATE_DEFAULTS if key in looks)
    return replace(trial, overrides=tuple(trainers), presets=tuple(presets), evaluate=evaluate)


def _share(trial: Trial, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f"axis {trial.axis!r}: {SHARE}={text} must be a share of the shards in (0, 1]")
    return share


def _settings_of(name: str, axis: AxisConfig) -> Iterable[Setting]:
    if isinstance(axis.values, Mapping):
        for label, bundle in axis.values.items():
            yield Setting(name, str(label), tuple(override(key, value) for key, value in bundle.items()))
    else:
        for value in axis.values or ():
            yield Setting(name, label_of(value), (override(str(axis.key), value),))


def _draw(rng: random.Random, axis: AxisConfig, several: Sequence[Setting]) -> Setting | float:
    if not axis.is_range:
        return rng.choice(several)
    low, high = axis.low or 0.0, axis.high or 0.0
    return low * (high / low) ** rng.random() if axis.log else rng.uniform(low, high)


def _file_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9=.,+-]+", "_", label).strip("_")
