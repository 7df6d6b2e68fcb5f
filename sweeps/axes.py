"""Axes as data: a YAML file says what is varied around which base; pure functions expand it into trials.

    question: Do the strategies beat random masks?       shown on the report
    base:
      preset: demo                                       of distributed/presets
      overrides: {train.global_batch: 16}                what the base changes in it
    axes:
      mask_ratio: {key: masks.ratio, values: [0.6, 0.8]}             one key
      masks:                                                         several keys that move together, by name
        values:
          random_only: {masks.random: 1, masks.block: 0, masks.time_frequency: 0}
    plan: one_at_a_time                                  or grid
    seeds: [0]
    tasks: [collection, tempo]                           of the evaluator
    probe_tracks: 400                                    so many of the corpus' tracks; all when left out
    compare_on: test                                     or valid, to search for a recipe without looking at the test
    budget: {samples: 4800}                              or {steps: 300}
    commands: {train: [...], evaluate: [...]}            only for a launcher of one's own

A budget in samples keeps trials comparable when an axis moves the batch size: each trial takes as many steps as the
budget holds global batches. Every trial is composed into a full experiment before anything starts, so a misspelt key
costs a second and not a night (sweeps/planning.py).
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pupujepa.config import compose
from pupujepa.errors import UserError

PLANS = ("one_at_a_time", "grid")
SPLITS = ("test", "valid")
BASE = "base"
SEED_KEYS = ("train.seed", "stream.seed")  # initial weights; order, crops and masks


@dataclass(frozen=True)
class BaseConfig:
    """What all trials share: a preset of the training room and dotted overrides of it."""

    preset: str = "demo"
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AxisConfig:
    """One thing that is varied: a `key` with a list of values, or named bundles of keys (`values` is a mapping)."""

    key: str | None = None
    values: Any = None


@dataclass(frozen=True)
class Budget:
    """How long each trial trains; exactly one of the two."""

    steps: int | None = None
    samples: int | None = None


@dataclass(frozen=True)
class CommandsConfig:
    """Argv templates of a trial's two commands, for a launcher of one's own; empty for the ordinary ones.

    The placeholders are those of `sweeps.plan.Commands`.
    """

    train: list[str] = field(default_factory=list)
    evaluate: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SweepConfig:
    """A sweep file; see the module's docstring for the meaning of the fields."""

    question: str = ""
    base: BaseConfig = field(default_factory=BaseConfig)
    axes: dict[str, AxisConfig] = field(default_factory=dict)
    plan: str = "one_at_a_time"
    seeds: list[int] = field(default_factory=lambda: [0])
    tasks: list[str] = field(default_factory=list)
    probe_tracks: int | None = None
    compare_on: str = "test"
    budget: Budget = field(default_factory=Budget)
    commands: CommandsConfig = field(default_factory=CommandsConfig)


@dataclass(frozen=True)
class Setting:
    """One value of one axis: how it is called, and the overrides that make it."""

    axis: str
    value: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One run to train and probe: the base with at most a few keys changed.

    `axis` and `value` are "base" and "" for the base itself; a grid joins several with " + ".
    """

    name: str
    axis: str
    value: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def is_base(self) -> bool:
        """True for the trial that all deltas refer to."""
        return self.axis == BASE


def read_sweep(path: Path) -> SweepConfig:
    """Reads and checks a sweep file.

    Raises:
        UserError: no such file, an unknown key (with the nearest name), an axis without values, a plan that does not
            exist, or a budget that is missing or given twice.
    """
    sweep = compose(SweepConfig, file=path)
    for complaint in _complaints(sweep):
        raise UserError(f"{path}: {complaint}")
    return sweep


def settings(sweep: SweepConfig) -> dict[str, tuple[Setting, ...]]:
    """Returns the settings of every axis, by the axis' name, in the order of the file."""
    return {name: tuple(_settings_of(name, axis)) for name, axis in sweep.axes.items()}


def expand(sweep: SweepConfig, *, shared: Sequence[str] = ()) -> list[Trial]:
    """Returns the trials of a sweep: for each seed the base, then what the plan makes of the axes.

    Args:
        shared: overrides that all trials get after the base's and before the axes', which have the last word.
    """
    axes = list(settings(sweep).values())
    if sweep.plan == "grid":
        points: list[tuple[Setting, ...]] = [*product(*axes)] if axes else []
    else:
        points = [(setting,) for axis in axes for setting in axis]
    return [_trial(sweep, point, seed, shared) for seed in sweep.seeds for point in [(), *points]]


def override(key: str, value: Any) -> str:
    """Returns `key=value` with the value written as YAML, the way the trainer's command line reads it."""
    text = value if isinstance(value, str) and _reads_back(value) else json.dumps(value)
    return f"{key}={text}"


def _complaints(sweep: SweepConfig) -> Iterable[str]:
    if sweep.plan not in PLANS:
        yield f"plan {sweep.plan!r} does not exist; choose one of {', '.join(PLANS)}"
    if sweep.compare_on not in SPLITS:
        yield f"compare_on: {sweep.compare_on} is no split that probes are scored on; choose {' or '.join(SPLITS)}"
    for name, axis in sweep.axes.items():
        if name == BASE:
            yield f"an axis cannot be called {BASE!r}: that is the trial without any axis"
        if isinstance(axis.values, Mapping):
            if axis.key is not None:
                yield f"axis {name!r} has a key and named values; named values carry their own keys, so drop `key`"
            for label, bundle in axis.values.items():
                if not isinstance(bundle, Mapping) or not bundle:
                    yield f"axis {name!r}: {label!r} must map dotted keys to values, e.g. {{masks.ratio: 0.6}}"
        elif not isinstance(axis.values, Sequence) or isinstance(axis.values, str) or not axis.values:
            yield f"axis {name!r} needs `values`: a list for its `key`, or named bundles of keys"
        elif axis.key is None:
            yield f"axis {name!r} has a list of values and no `key` to set, e.g. key: masks.ratio"
    if (sweep.budget.steps is None) == (sweep.budget.samples is None):
        yield "budget needs exactly one of steps and samples, e.g. budget: {samples: 4800}"
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds):
        yield "seeds must be a list of different integers, e.g. seeds: [0, 1, 2]"
    if sweep.probe_tracks is not None and sweep.probe_tracks < 1:
        yield f"probe_tracks: {sweep.probe_tracks} leaves nothing to probe; leave it out to use all tracks"
    if not sweep.tasks:
        yield "tasks names what the evaluator measures after training, e.g. tasks: [collection, tempo]"


def _settings_of(name: str, axis: AxisConfig) -> Iterable[Setting]:
    if isinstance(axis.values, Mapping):
        for label, bundle in axis.values.items():
            yield Setting(name, str(label), tuple(override(key, value) for key, value in bundle.items()))
    else:
        for value in axis.values:
            written = override(str(axis.key), value)
            yield Setting(name, written.partition("=")[2], (written,))


def _trial(sweep: SweepConfig, point: Sequence[Setting], seed: int, shared: Sequence[str]) -> Trial:
    axis = " + ".join(setting.axis for setting in point) or BASE
    value = " + ".join(setting.value for setting in point)
    label = ",".join(f"{setting.axis}={setting.value}" for setting in point) or BASE
    base = tuple(override(key, value) for key, value in sweep.base.overrides.items())
    varied = tuple(text for setting in point for text in setting.overrides)
    seeded = tuple(override(key, seed) for key in SEED_KEYS)
    return Trial(f"{_file_name(label)}-seed{seed}", axis, value, seed, (*base, *shared, *seeded, *varied))


def _file_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9=.,+-]+", "_", label).strip("_")


def _reads_back(text: str) -> bool:
    """True when YAML takes `text` for the string it is, and not for a number, a list or null."""
    return bool(re.fullmatch(r"[\w./][\w./:+-]*", text)) and OmegaConf.from_dotlist([f"x={text}"]).x == text
