"""The plan of a sweep: what will run, with which commands, in which directories. Written before Ray starts.

The plan is all that a trial's process reads; it composes no configuration and reads no sweep file. A trial's directory
carries a digest of everything that decides its result, so a sweep file may be changed and run again: equal trials are
found finished, changed ones get a new directory, and nothing is ever mixed.

    OUT/plan.json                the plan
        sweep.yaml               the sweep file that it was made from
        trials/<name>-<digest>/  an ordinary run directory, with trial.json, train.log, evaluate.log and results.jsonl
        parts/                   manifests of parts of the shards, where an axis varies the amount of data
        corpus/                  the part of the labelled corpus that is probed, where the sweep asks for a part
        tune/                    Ray Tune's own state, from which an interrupted sweep goes on
        sweep.jsonl, sweep.md, sweep.html    the report
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from distributed.run.directory import write_json
from pupujepa.errors import UserError
from sweeps.plan.points import Trial
from sweeps.plan.sweep_file import NO_SCHEDULER

FORMAT_VERSION = 3
PLAN_NAME, SWEEP_NAME = "plan.json", "sweep.yaml"

_DISTRIBUTED = ("-m", "distributed")
_TORCHRUN = (
    *("-m", "torch.distributed.run", "--nproc-per-node", "{ranks}"),
    *("--master-addr", "127.0.0.1", "--master-port", "{port}", "-m", "distributed"),
)
_TRAIN = ("train", "{presets}", "--run-dir", "{run_dir}", "{overrides}")
_EVALUATE = ("evaluate", "--encoders", "{encoder}", "--tasks", "{tasks}", "--data", "{corpus}", "--out", "{run_dir}")


@dataclass(frozen=True)
class Commands:
    """Argv templates of the two commands of a trial.

    Placeholders: {python} {preset} {run_dir} {encoder} {shards} {corpus} {ranks} {port} {seed}; {presets} (with
    --preset before each), {overrides} and {tasks}, alone in their word, become as many words as there are. {encoder} is
    the run directory with what varies in how it is looked at, or that of the trial whose model is looked at once more.
    """

    train: tuple[str, ...]
    evaluate: tuple[str, ...]


def commands_for(ranks: int) -> Commands:
    """Returns the ordinary trainer and evaluator, in one process or under torchrun."""
    launcher = ("{python}", *(_DISTRIBUTED if ranks == 1 else _TORCHRUN))
    return Commands(train=(*launcher, *_TRAIN), evaluate=(*launcher, *_EVALUATE))


@dataclass(frozen=True)
class Launch:
    """What all trials have in common: inputs, commands, resources.

    Attributes:
        parts: folder for parts of the shards.
        compare_on: the split whose scores the report shows. A recipe that is chosen by its scores is chosen on `valid`.
    """

    preset: str
    shards: str
    corpus: str
    tasks: tuple[str, ...]
    commands: Commands
    ranks: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    grace_s: float = 10.0
    compare_on: str = "test"
    parts: str = ""


@dataclass(frozen=True)
class Schedule:
    """How trials are compared on the way; see `sweeps.plan.sweep_file.SchedulerConfig`.

    Attributes:
        every_samples: crops between two probes of a trial.
        total_samples: of the budget.
    """

    kind: str = NO_SCHEDULER
    every_samples: int = 0
    total_samples: int = 0
    reduction_factor: int = 3


@dataclass(frozen=True)
class Search:
    """What planning a further trial needs, for a plan that grows while it runs.

    Attributes:
        draws: trials that are to be found.
        space: identifies the axes that it searches.
        planned_before: trials that were in the plan before the search; the others were found.
        inputs: what decides the result of a trial beside its settings.
        shared: overrides that all trials get.
    """

    draws: int
    space: str
    planned_before: int
    inputs: dict[str, Any]
    shared: tuple[str, ...]


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with what the planner knows about it.

    Attributes:
        steps: optimiser steps that it trains.
        samples: crops that it sees in them.
        settings: its resolved experiment, flat, by dotted key, and what it adds to that.
        tokens: patches of these crops.
        flops: operations of its training, by arithmetic (pupujepa/cost/cost.py).
        training: identifies what decides its model.
        model: name of the trial whose model it looks at in another way; "" for one that trains its own.
        drawn: what a search said of each axis.
    """

    trial: Trial
    digest: str
    steps: int
    samples: int
    settings: dict[str, Any]
    tokens: int = 0
    flops: int = 0
    training: str = ""
    model: str = ""
    drawn: dict[str, Any] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        """Its run directory, relative to the sweep's."""
        return f"trials/{self.trial.name}-{self.digest[:8]}"

    @property
    def samples_per_step(self) -> float:
        """Its global batch."""
        return self.samples / self.steps


@dataclass(frozen=True)
class Plan:
    """A sweep that is ready to run.

    Attributes:
        same_as: names of trials that would repeat another one, and that one's name.
        session: changes with every start of the sweep; tells a failure of this start from one of an earlier start.
    """

    name: str
    question: str
    launch: Launch
    trials: tuple[PlannedTrial, ...]
    same_as: dict[str, str]
    session: str = ""
    schedule: Schedule = Schedule()
    search: Search | None = None

    @property
    def digest(self) -> str:
        """Identifies the set of trials, those that are found later left out; Ray Tune's state belongs to one."""
        if self.search is None:
            return digest_of([planned.digest for planned in self.trials])
        before = self.trials[: self.search.planned_before]
        return digest_of([*(planned.digest for planned in before), self.search.space])

    @property
    def models(self) -> list[PlannedTrial]:
        """The trials that train a model."""
        return [planned for planned in self.trials if not planned.model]

    def looks_at(self, name: str) -> list[PlannedTrial]:
        """Returns the trials that look at the model of the trial called `name` in other ways."""
        return [planned for planned in self.trials if planned.model == name]

    def planned(self, name: str) -> PlannedTrial:
        """Returns the trial called `name`."""
        return next(planned for planned in self.trials if planned.trial.name == name)


def digest_of(value: Any) -> str:
    """Returns 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted key; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def write_plan(plan: Plan, out: Path) -> Path:
    """Writes OUT/plan.json atomically and returns its path."""
    path = out / PLAN_NAME
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format_version": FORMAT_VERSION, **asdict(plan)})
    return path


def read_plan(out: Path) -> Plan:
    """Reads what `write_plan` wrote.

    Raises:
        UserError: there is no plan in `out`, or one of another version.
    """
    path = out / PLAN_NAME
    if not path.is_file():
        raise UserError(
            f"{out} holds no sweep (no plan.json); start one with: python -m sweeps run SWEEP.yaml --out {out}"
        )
    raw = json.loads(path.read_text())
    if raw.pop("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} was written by another version of this program; run the sweep again with another --out"
        )
    launch = raw.pop("launch")
    launch["commands"] = Commands(**{name: tuple(argv) for name, argv in launch["commands"].items()})
    launch["tasks"] = tuple(launch["tasks"])
    trials = tuple(_planned_trial(planned) for planned in raw.pop("trials"))
    search = raw.pop("search")
    if search is not None:
        search = Search(**{**search, "shared": tuple(search["shared"])})
    schedule = Schedule(**raw.pop("schedule"))
    return Plan(launch=Launch(**launch), trials=trials, schedule=schedule, search=search, **raw)


def fill(template: Sequence[str], values: Mapping[str, str], lists: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the argv of a template: `{name}` is replaced inside words, a word that is a list's name by its items."""
    argv: list[str] = []
    for word in template:
        if word.strip("{}") in lists and word.startswith("{"):
            argv += lists[word.strip("{}")]
        else:
            for name, value in values.items():
                word = word.replace(f"{{{name}}}", value)
            argv.append(word)
    return argv


def _planned_trial(raw: dict[str, Any]) -> PlannedTrial:
    trial = raw.pop("trial")
    trial |= {name: tuple(trial[name]) for name in ("overrides", "presets")}
    return PlannedTrial(trial=Trial(**trial | {"evaluate": tuple(map(tuple, trial["evaluate"]))}), **raw)
