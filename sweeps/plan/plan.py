"""The plan of a sweep: trials, commands and directories, written before Ray starts.

A trial's process reads only the plan; it composes no configuration and reads no sweep file. A trial's directory has a
digest of all that decides its result. So a sweep file may change and run again: equal trials are found finished, and
changed ones get a new directory.

    OUT/plan.json                the plan
        sweep.yaml               the sweep file that it was made from
        trials/<name>-<digest>/  an ordinary run directory, with trial.json, train.log, evaluate.log and results.jsonl
        parts/                   links to parts of the shards, if an axis varies the amount of data
        corpus/                  the probed subset of the labelled corpus, if the sweep asks for one
        tune/                    Ray Tune's state, from which an interrupted sweep resumes
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
from pupujepa.names import require_plain_path
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

    Placeholders: {python} {preset} {run_dir} {encoder} {shards} {corpus} {ranks} {port} {seed}. Each of {presets} (with
    --preset before each), {overrides} and {tasks} is a whole word, which becomes a word for each item. {encoder} is the
    run directory of the model, with the trial's options of the evaluator.
    """

    train: tuple[str, ...]
    evaluate: tuple[str, ...]


def commands_for(ranks: int) -> Commands:
    """Returns the templates of the ordinary trainer and evaluator: one process, or torchrun."""
    launcher = ("{python}", *(_DISTRIBUTED if ranks == 1 else _TORCHRUN))
    return Commands(train=(*launcher, *_TRAIN), evaluate=(*launcher, *_EVALUATE))


@dataclass(frozen=True)
class Launch:
    """Inputs, commands and resources that all trials share.

    Attributes:
        parts: folder for parts of the shards.
        compare_on: split of the scores in the report; `valid` if scores choose a recipe.
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
    """Comparison of trials in training; see `sweeps.plan.sweep_file.SchedulerConfig`.

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
    """Inputs for the planning of further trials, for a plan that grows while it runs.

    Attributes:
        draws: number of trials to find.
        space: digest of the axes.
        planned_before: number of trials in the plan before the search; the others were found.
        inputs: what decides the result of a trial beside its settings.
        shared: overrides of all trials.
    """

    draws: int
    space: str
    planned_before: int
    inputs: dict[str, Any]
    shared: tuple[str, ...]


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with its digest, length and settings.

    Attributes:
        steps: optimiser steps.
        samples: crops in these steps.
        settings: the resolved experiment and the sweep's own settings, flat, by dotted key.
        tokens: patches of these crops.
        flops: operations of the training, by arithmetic (pupujepa/cost/cost.py).
        training: digest of all that decides the model.
        model: name of the trial with the model to evaluate; "" for a trial that trains its own.
        drawn: value of each axis in a search.
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
        """Run directory, relative to the sweep's."""
        return f"trials/{self.trial.name}-{self.digest[:8]}"

    @property
    def samples_per_step(self) -> float:
        """Global batch."""
        return self.samples / self.steps


@dataclass(frozen=True)
class Plan:
    """A sweep that is ready to run.

    Attributes:
        same_as: {name of a trial that would repeat another: name of the other}.
        session: start of the sweep; separates failures of this start from those of earlier ones.
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
        """Digest of the set of trials, without those that a search finds; Ray Tune's state belongs to one."""
        if self.search is None:
            return digest_of([planned.digest for planned in self.trials])
        before = self.trials[: self.search.planned_before]
        return digest_of([*(planned.digest for planned in before), self.search.space])

    @property
    def models(self) -> list[PlannedTrial]:
        """The trials that train a model."""
        return [planned for planned in self.trials if not planned.model]

    def looks_at(self, name: str) -> list[PlannedTrial]:
        """Returns the trials that evaluate the model of the trial called `name`."""
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
        UserError: `out` has no plan, a damaged one, one of another version, or one with trials outside of `out`.
    """
    path = out / PLAN_NAME
    if not path.is_file():
        raise UserError(f"{out} holds no sweep (no plan.json); start one: python -m sweeps run SWEEP.yaml --out {out}")
    try:
        return _parsed_plan(path.read_bytes(), path)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}), so the sweep cannot continue; restore it, or run the sweep again with "
            "another --out"
        ) from error


def _parsed_plan(content: bytes, path: Path) -> Plan:
    raw = json.loads(content)
    if raw.pop("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} was written by another version of this program; run the sweep again with another --out"
        )
    launch = raw.pop("launch")
    launch["commands"] = Commands(**{name: tuple(argv) for name, argv in launch["commands"].items()})
    launch["tasks"] = tuple(launch["tasks"])
    trials = tuple(_planned_trial(planned) for planned in raw.pop("trials"))
    for planned in trials:
        require_plain_path(planned.directory, origin=str(path))
    search = raw.pop("search")
    if search is not None:
        search = Search(**{**search, "shared": tuple(search["shared"])})
    schedule = Schedule(**raw.pop("schedule"))
    return Plan(launch=Launch(**launch), trials=trials, schedule=schedule, search=search, **raw)


def fill_plan(template: Sequence[str], values: Mapping[str, str], lists: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the argv of a template: replaces `{name}` inside words, and a word `{list}` by its items."""
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
