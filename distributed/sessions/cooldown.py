"""A run branched off another to cool down: `train --cooldown-from RUN[:STEP]`.

The branch is a run of its own that begins with a copy of one of the parent's checkpoints: weights, optimiser, teacher
and place in the order come with it. From then on it is stopped, continued and moved to other ranks like any run, also
when the parent is gone. Its configuration is the parent's, but for its end and where the learning rate ends.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distributed.checkpoints.reading import checkpoint_place
from distributed.checkpoints.shared_directory import CheckpointPlace, step_name
from distributed.experiment import Experiment, experiment_differences, load_experiment
from distributed.run.directory import RunDirectory, RunDirectoryError
from pupujepa.config import from_yaml
from pupujepa.training.schedules import BranchConfig, learning_rate

# what a branch decides for itself, beside what every run is free to change
_OWN = ("train.steps", "schedule.final_lr", "branch.")
# below the branch, while it begins
_STAGING = "staging-of-parent"

logger = logging.getLogger(__name__)


def branch_experiment(spec: str, directory: RunDirectory, *, overrides: Sequence[str] = ()) -> Experiment:
    """Composes the experiment of a branch; reads files only, so that every rank can do it alone.

    Args:
        spec: the parent's run directory, then `:STEP` for another checkpoint than its newest.
        directory: of the branch; what it holds already decides, so that the same command goes on.
        overrides: dotted; `train.steps` is where the branch ends. Without it the cooldown is as long as to be
            `schedule.cooldown_fraction` of the whole.

    Raises:
        RunDirectoryError: no such run or checkpoint, a directory that holds another run, or overrides that would make
            the branch differ in more than its cooldown.
    """
    parent, step = _parse(spec)
    if directory.config.exists():
        return _existing(directory, parent, step, overrides)
    if not parent.config.is_file():
        raise RunDirectoryError(f"--cooldown-from {spec}: {parent.config} does not exist, so {parent.root} is no run")
    before = from_yaml(Experiment, parent.config.read_text())
    step = _existing_step(_place_of_parent(parent, directory), step, spec=spec)
    # two runs must not write to one place; in the branch's own directory, unless it is told another
    defaults = ["checkpoint.url=''"]
    if not any(o.startswith("train.steps=") for o in overrides):
        defaults.append(f"train.steps={_end(before, step)}")
    experiment = load_experiment(file=parent.config, overrides=[*defaults, *overrides])
    rate = learning_rate(step, before.train.steps, before.schedule, branch=before.branch)
    branch = BranchConfig(str(parent.root), step, rate, before.horizon_steps)
    experiment = replace(experiment, branch=branch)
    _require_cooldown(before, experiment)
    _require_own_place(before, experiment)
    return experiment


def _parse(spec: str) -> tuple[RunDirectory, int | None]:
    run, _, step = spec.rpartition(":")
    return (RunDirectory(Path(run)), int(step)) if run and step.isdigit() else (RunDirectory(Path(spec)), None)


def _existing(directory: RunDirectory, parent: RunDirectory, step: int | None, overrides: Sequence[str]) -> Experiment:
    held = from_yaml(Experiment, directory.config.read_text()).branch
    if not held.step or step not in (None, held.step) or Path(held.parent).resolve() != parent.root.resolve():
        what = f"the cooldown of {held.parent} after {held.step} steps" if held.step else "a run that is no branch"
        raise RunDirectoryError(f"{directory.root} holds {what}; going on would mix two runs: choose another --run-dir")
    return load_experiment(file=directory.config, overrides=overrides)


def _place_of_parent(parent: RunDirectory, directory: RunDirectory) -> CheckpointPlace:
    url = from_yaml(Experiment, parent.config.read_text()).checkpoint.url
    return checkpoint_place(parent, url, staging=directory.root / _STAGING)


def _existing_step(place: CheckpointPlace, step: int | None, *, spec: str) -> int:
    chosen, there = place.latest() if step is None else step, place.steps()
    if chosen is None or chosen not in there:
        missing = "no checkpoint yet" if chosen is None else f"no checkpoint of step {chosen}"
        names = ", ".join(map(step_name, sorted(there)))
        raise RunDirectoryError(f"--cooldown-from {spec}: there is {missing}; there are: {names or 'none'}")
    return chosen


def _end(before: Experiment, step: int) -> int:
    """Returns where the branch ends if its cooldown is to be the parent's fraction of the whole."""
    fraction = before.schedule.cooldown_fraction
    if not 0 < fraction < 1:
        raise RunDirectoryError(
            f"schedule.cooldown_fraction={fraction} does not say how long the branch cools down; set train.steps"
        )
    return step + max(1, round(step * fraction / (1 - fraction)))


def _require_cooldown(before: Experiment, experiment: Experiment) -> None:
    branch, schedule = experiment.branch, experiment.schedule
    changed = [d for d in experiment_differences(before, experiment) if not d.startswith(_OWN)]
    if changed:
        raise RunDirectoryError(
            f"a cooldown branch is its parent but for train.steps, schedule.final_lr and what every run may change; "
            f"this is another experiment: {'; '.join(changed)}; leave it out"
        )
    if experiment.train.steps <= branch.step:
        raise RunDirectoryError(
            f"train.steps={experiment.train.steps} is where the branch ends, and it begins after {branch.step} steps; "
            f"set it higher"
        )
    warmup_steps = round(schedule.warmup_fraction * before.train.steps)
    if not before.branch.step and branch.step < warmup_steps:
        raise RunDirectoryError(
            f"{branch.parent} was still warming up after {branch.step} steps, so there is nothing to cool down; branch "
            f"off after step {warmup_steps}"
        )
    if schedule.final_lr > branch.rate:
        raise RunDirectoryError(
            f"schedule.final_lr={schedule.final_lr} lies above {branch.rate:.3g}, the parent's learning rate after "
            f"{branch.step} steps, so that the rate would rise; set it lower"
        )


def _require_own_place(before: Experiment, experiment: Experiment) -> None:
    url = experiment.checkpoint.url
    if "://" in url or (url and url == before.checkpoint.url):
        raise RunDirectoryError(
            f"checkpoint.url={url}: a branch begins with a copy in a directory of its own; leave it empty, for the run "
            f"directory, or name another directory"
        )
