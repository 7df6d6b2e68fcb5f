"""The sweep file: a base and the axes that vary it, in YAML; sweeps/plan/points.py expands it.

    question: Do the strategies beat random masks?       shown on the report
    base:
      preset: demo                                       of distributed/presets
      overrides: {train.global_batch: 16}                of the base
    axes:
      mask_ratio: {key: masks.ratio, values: [0.6, 0.8]}             one key
      masks:                                                         named bundles of keys
        values:
          random_only: {masks.random: 1, masks.block: 0, masks.time_frequency: 0}
      rate: {key: schedule.peak_lr, low: 1.0e-4, high: 1.0e-2, log: true}    for plans that draw
      layers: {key: objective.target_layers, values: [1, 8], when: {objective: jepa}}    only beside that value
    plan: one_at_a_time                                  or grid, random, optuna
    draws: 20                                            of random and optuna
    seeds: [0]
    tasks: [collection, tempo]                           of the evaluator
    probe_tracks: 400                                    number of the corpus' tracks to probe; all by default
    compare_on: test                                     or valid, to choose a recipe without the test split
    budget: {samples: 4800}                              or {steps: 300}
    scheduler: {kind: asha}                              ends trials that are behind, by their probes in training
    commands: {train: [...], evaluate: [...]}            only for another launcher

A budget in samples keeps trials comparable when an axis changes the batch size: each trial takes as many steps as the
budget holds global batches. Every trial is composed into a full experiment before any starts, so a misspelt key fails
at once (sweeps/plan/compose.py).

Keys of a base or a value belong to the trainer, but for the sweep's own (sweeps/plan/points.py). `preset` puts a recipe
on top of the base's. `equal` names the quantity shared with the base instead of the budget (steps, tokens or flops).
`data.share` trains on the first shards only. `evaluate.*` are options of the evaluator, such as
`evaluate.readout: mean`: a value with only these evaluates a model again, without training.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pupujepa.config import compose
from pupujepa.errors import UserError

ONE_AT_A_TIME, GRID, RANDOM, OPTUNA = PLANS = ("one_at_a_time", "grid", "random", "optuna")
NO_SCHEDULER, ASHA = "none", "asha"
SCHEDULERS = (NO_SCHEDULER, "watch", ASHA)
SPLITS = ("test", "valid")
BASE = "base"


@dataclass(frozen=True)
class BaseConfig:
    """The base of all trials: a preset of the training room and overrides of it."""

    preset: str = "demo"
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AxisConfig:
    """An axis: a `key` with a list of values, or named bundles of keys (`values` is a mapping).

    low, high, log: instead of values, a range from which random and optuna plans draw numbers for `key`.
    when: {an axis declared before: one of its values, or a list of them}; elsewhere this axis does not exist.
    """

    key: str | None = None
    values: Any = None
    low: float | None = None
    high: float | None = None
    log: bool = False
    when: dict[str, Any] = field(default_factory=dict)

    @property
    def is_range(self) -> bool:
        """True for a range of numbers."""
        return self.low is not None or self.high is not None


@dataclass(frozen=True)
class Budget:
    """Length of each trial's training; exactly one of the two."""

    steps: int | None = None
    samples: int | None = None


@dataclass(frozen=True)
class SchedulerConfig:
    """Scheduler of trials in training, by `probe/mean`, the quality of their probes.

    kind: "watch" probes and ends no trial, for the curves of the report; "asha" ends trials that are behind others at
        an equal number of samples (sweeps/tune/tune.py).
    every: share of the budget between two probes, and between two comparisons.
    reduction_factor: of asha; about one in this many trials continues at each comparison, the first after `every`.
    """

    kind: str = NO_SCHEDULER
    every: float = 0.1
    reduction_factor: int = 3


@dataclass(frozen=True)
class CommandsConfig:
    """Argv templates of a trial's commands (`sweeps.plan.plan.Commands`); empty for the ordinary ones."""

    train: list[str] = field(default_factory=list)
    evaluate: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SweepConfig:
    """A sweep file; the module's docstring explains the fields."""

    question: str = ""
    base: BaseConfig = field(default_factory=BaseConfig)
    axes: dict[str, AxisConfig] = field(default_factory=dict)
    plan: str = ONE_AT_A_TIME
    draws: int = 0
    seeds: list[int] = field(default_factory=lambda: [0])
    tasks: list[str] = field(default_factory=list)
    probe_tracks: int | None = None
    compare_on: str = "test"
    budget: Budget = field(default_factory=Budget)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    commands: CommandsConfig = field(default_factory=CommandsConfig)


def read_sweep(path: Path) -> SweepConfig:
    """Reads and checks a sweep file.

    Raises:
        UserError: no such file, an unknown key (with the nearest name), an axis without values, an unknown plan, or a
            budget that is missing or given twice.
    """
    sweep = compose(SweepConfig, file=path)
    for complaint in (*_about_axes(sweep), *_about_plan(sweep), *_about_scheduler(sweep), *_about_the_rest(sweep)):
        raise UserError(f"{path}: {complaint}")
    return sweep


def override(key: str, value: Any) -> str:
    """Returns `key=value` as the trainer's command line reads it: text as it is, any other value as YAML."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def allowed(condition: Any) -> tuple[str, ...]:
    """Returns the labels in a condition of `when`."""
    several = condition if isinstance(condition, Sequence) and not isinstance(condition, str) else [condition]
    return tuple(label_of(value) for value in several)


def label_of(value: Any) -> str:
    """Returns the label of a value in a list."""
    return value if isinstance(value, str) else override("", value)[1:]


def labels(axis: AxisConfig) -> tuple[str, ...]:
    """Returns the labels of an axis; none for a range."""
    if axis.values is None:
        return ()
    return tuple(str(label) if isinstance(axis.values, Mapping) else label_of(label) for label in axis.values)


def _about_axes(sweep: SweepConfig) -> Iterable[str]:
    for name, axis in sweep.axes.items():
        if name == BASE:
            yield f"an axis cannot be called {BASE!r}, the name of the trial without axes; rename it"
        if axis.is_range:
            yield from _about_range(name, axis, sweep.plan)
        elif isinstance(axis.values, Mapping):
            if axis.key is not None:
                yield f"axis {name!r} has a key and named values; named values have their own keys, so drop `key`"
            for label, bundle in axis.values.items():
                if not isinstance(bundle, Mapping) or not bundle:
                    yield f"axis {name!r}: {label!r} must map dotted keys to values, e.g. {{masks.ratio: 0.6}}"
        elif not isinstance(axis.values, Sequence) or isinstance(axis.values, str) or not axis.values:
            yield f"axis {name!r} needs `values`: a list for its `key`, or named bundles of keys"
        elif axis.key is None:
            yield f"axis {name!r} has a list of values and no `key` to set, e.g. key: masks.ratio"
        yield from _about_condition(name, axis, sweep)


def _about_range(name: str, axis: AxisConfig, plan: str) -> Iterable[str]:
    if axis.low is None or axis.high is None or not axis.low < axis.high or axis.key is None or axis.values is not None:
        yield f"axis {name!r} is a range, which needs a `key`, `low` < `high` and no `values`"
    elif axis.log and not axis.low > 0:
        yield f"axis {name!r} has log: true and low: {axis.low:g}, which has no logarithm; raise `low` above 0"
    elif plan not in (RANDOM, OPTUNA):
        yield f"axis {name!r} is a range, which plan {plan} cannot list; give `values`, or plan: {RANDOM}"


def _about_condition(name: str, axis: AxisConfig, sweep: SweepConfig) -> Iterable[str]:
    before = list(sweep.axes)[: list(sweep.axes).index(name)]
    for parent, condition in axis.when.items():
        if parent not in before:
            yield f"axis {name!r} depends on {parent!r}, which is not declared before it; declare it first"
            continue
        for label in allowed(condition):
            if label not in labels(sweep.axes[parent]):
                known = ", ".join(labels(sweep.axes[parent])) or "a range, which has no names"
                yield f"axis {name!r} depends on {parent}={label}, which does not exist; it has: {known}"


def _about_plan(sweep: SweepConfig) -> Iterable[str]:
    if sweep.plan not in PLANS:
        yield f"plan {sweep.plan!r} does not exist; choose one of {', '.join(PLANS)}"
    if sweep.plan in (RANDOM, OPTUNA) and (sweep.draws < 1 or not sweep.axes):
        yield f"plan {sweep.plan} draws from axes; give the number of draws, e.g. draws: 20"
    if sweep.plan == OPTUNA and (sweep.compare_on != "valid" or len(sweep.seeds) != 1):
        yield (
            "plan optuna chooses by scores, so it needs compare_on: valid, or it would fit the test split; and one "
            "seed: confirm its result with several seeds"
        )


def _about_scheduler(sweep: SweepConfig) -> Iterable[str]:
    scheduler = sweep.scheduler
    if scheduler.kind not in SCHEDULERS:
        yield f"scheduler.kind {scheduler.kind!r} does not exist; choose one of {', '.join(SCHEDULERS)}"
    if not 0 < scheduler.every < 1 or scheduler.reduction_factor < 2:
        yield (
            f"scheduler: every={scheduler.every} is a share of the budget between 0 and 1, and "
            f"reduction_factor={scheduler.reduction_factor} at least 2"
        )
    if scheduler.kind != NO_SCHEDULER and sweep.budget.samples is None:
        yield f"scheduler {scheduler.kind} compares trials at equal samples, so the budget must be in samples"


def _about_the_rest(sweep: SweepConfig) -> Iterable[str]:
    if sweep.compare_on not in SPLITS:
        yield f"compare_on: {sweep.compare_on} is not a split of the scores; choose {' or '.join(SPLITS)}"
    if (sweep.budget.steps is None) == (sweep.budget.samples is None):
        yield "budget needs exactly one of steps and samples, e.g. budget: {samples: 4800}"
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds):
        yield "seeds must be a list of different integers, e.g. seeds: [0, 1, 2]"
    if sweep.probe_tracks is not None and sweep.probe_tracks < 1:
        yield f"probe_tracks: {sweep.probe_tracks} leaves nothing to probe; leave it out to use all tracks"
    if not sweep.tasks:
        yield "tasks is empty, so no trial would be evaluated; name some, e.g. tasks: [collection, tempo]"
