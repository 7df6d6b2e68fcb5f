"""From a sweep file to a plan: every trial is composed into a full experiment before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data.manifest import read_manifest
from distributed.experiment import Experiment, check, load_experiment
from distributed.marble.corpus import read_corpus
from pupujepa.config import ConfigError
from pupujepa.errors import UserError
from sweeps.axes import Budget, SweepConfig, Trial, expand, override
from sweeps.plan import Launch, Plan, PlannedTrial, digest_of, flatten

# what does not decide a trial's result: where the same shards lie, and what is written about the run on the way
IRRELEVANT = ("stream.url", "stream.cache_dir", "stream.cache_bytes", "checkpoint.", "telemetry.")
STEPS_KEY = "train.steps"


def make_plan(
    sweep: SweepConfig, launch: Launch, *, corpus: Path, name: str, session: str, extra: Sequence[str] = ()
) -> Plan:
    """Composes every trial and returns the plan.

    Args:
        corpus: the whole labelled corpus; `launch` names the part of it that is probed, which may not exist yet.
        extra: overrides for all trials, such as a cache directory.

    Raises:
        UserError: a key that no configuration declares (with the nearest name), fields that contradict each other or
            the number of ranks, shards, corpus or tasks that are not there. Each names the axis and the value.
    """
    inputs = {
        "shards": read_manifest(launch.shards).digest,
        "corpus": read_corpus(corpus).digest,
        "probe_tracks": sweep.probe_tracks,
        "tasks": launch.tasks,
        "commands": asdict(launch.commands),
        "ranks": launch.ranks,
    }
    planned: dict[str, PlannedTrial] = {}
    same_as: dict[str, str] = {}
    for trial in expand(sweep, shared=(override("stream.url", launch.shards), *extra)):
        candidate = plan_trial(trial, launch, budget=sweep.budget, inputs=inputs)
        # an axis value that the base has already would train the base once more
        kept = planned.setdefault(candidate.digest, candidate)
        if kept is not candidate:
            same_as[trial.name] = kept.trial.name
    return Plan(name, sweep.question, launch, tuple(planned.values()), same_as, session)


def plan_trial(trial: Trial, launch: Launch, *, budget: Budget, inputs: Mapping[str, Any]) -> PlannedTrial:
    """Composes one trial and spends its budget; an override of train.steps, as an axis has it, goes before the budget.

    Args:
        inputs: what decides the result beside the settings, such as the digests of the sweep's shards and the corpus;
            an axis over stream.url leads to other shards.
    """
    if not any(text.startswith(f"{STEPS_KEY}=") for text in trial.overrides):
        global_batch = _compose(trial, launch).stream.global_batch
        steps = budget.steps or max(1, (budget.samples or 0) // global_batch)
        trial = replace(trial, overrides=(*trial.overrides, override(STEPS_KEY, steps)))
    experiment = _compose(trial, launch)
    settings = flatten(asdict(experiment))
    relevant = {key: value for key, value in settings.items() if not key.startswith(IRRELEVANT)}
    url = experiment.stream.url
    shards = {"shards": read_manifest(url).digest} if url and url != launch.shards else {}
    return PlannedTrial(
        trial=trial,
        digest=digest_of({"settings": relevant, **inputs, **shards}),
        steps=experiment.train.steps,
        samples=experiment.train.steps * experiment.stream.global_batch,
        settings=settings,
    )


def _compose(trial: Trial, launch: Launch) -> Experiment:
    try:
        experiment = load_experiment([launch.preset], overrides=trial.overrides)
        check(experiment, world_size=launch.ranks)
    except UserError as error:
        which = "base" if trial.is_base else f"axis {trial.axis!r}, value {trial.value!r}"
        raise ConfigError(f"{which}: {error}") from error
    return experiment
