"""Cooldown branches: `train --cooldown-from RUN[:STEP]`.

A branch is a run of its own that starts with a copy of a checkpoint of its parent: weights, optimiser, teacher and
position in the order. After that it needs no parent and resumes like any run. Its configuration is the parent's, except
for the last step and the final learning rate.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from distributed.checkpoints.manifest import CheckpointError, step_name
from distributed.checkpoints.reading import checkpoint_place, committed
from distributed.checkpoints.shared_directory import POINTER_NAME, CheckpointPlace, SharedDirectory
from distributed.checkpoints.store import CheckpointStore
from distributed.experiment import Experiment, experiment_differences, load_experiment
from distributed.processes.collectives import from_all
from distributed.run.directory import RunDirectory, RunDirectoryError, write_atomically
from distributed.sessions.session import Session
from pupujepa.config import from_yaml, to_yaml
from pupujepa.durable import sync
from pupujepa.training.schedules import BranchConfig, learning_rate

# a branch may set these, beside the settings that every run may change
_OWN = ("train.steps", "schedule.final_lr", "branch.")
# folder of the branch for downloads from its parent
_STAGING = "staging-of-parent"

logger = logging.getLogger(__name__)


def branch_experiment(spec: str, directory: RunDirectory, *, overrides: Sequence[str] = ()) -> Experiment:
    """Composes the experiment of a branch from files only, so every rank can do it alone.

    Args:
        spec: the parent's run directory, with `:STEP` for another checkpoint than its newest.
        directory: of the branch; its config.yaml wins, so the same command resumes the branch.
        overrides: dotted; `train.steps` is the end of the branch. By default the cooldown is
            `schedule.cooldown_fraction` of the whole.

    Raises:
        RunDirectoryError: the run or checkpoint does not exist, the directory holds another run, or the overrides
            change more than the cooldown.
    """
    parent, step = _parse(spec)
    if directory.config.exists():
        return _existing(directory, parent, step, overrides)
    if not parent.config.is_file():
        raise RunDirectoryError(
            f"--cooldown-from {spec}: {parent.config} does not exist, so {parent.root} is not a run"
        )
    before = from_yaml(Experiment, parent.config)
    step = _existing_step(_place_of_parent(parent, directory), step, spec=spec)
    # two runs must not write to one place: by default the branch writes to its own directory
    defaults = ["checkpoint.url="]
    if not any(o.startswith("train.steps=") for o in overrides):
        defaults.append(f"train.steps={_end(before, step)}")
    experiment = load_experiment(file=parent.config, overrides=[*defaults, *overrides])
    rate = learning_rate(step, before.train.steps, before.schedule, branch=before.branch)
    branch = BranchConfig(str(parent.root), step, rate, before.horizon_steps)
    experiment = replace(experiment, branch=branch)
    _require_cooldown(before, experiment)
    _require_own_place(before, experiment)
    return experiment


def adopt_checkpoint(session: Session, store: CheckpointStore) -> None:
    """Copies the parent's checkpoint into a branch that has none yet; all ranks together.

    Raises:
        CheckpointError: the checkpoint is damaged or deleted, or the ranks chose different ones.
    """
    branch, directory = session.experiment.branch, session.directory
    if not branch.step:
        return
    seen = from_all(branch.step)
    if len(set(seen)) > 1:
        raise CheckpointError(
            f"{branch.parent} made a checkpoint while the ranks looked for its newest (steps {sorted(set(seen))}), so "
            f"they would hang at different steps; name one: --cooldown-from RUN:STEP"
        )
    if session.topology.is_first and not store.steps():
        # written first, so that the same command continues after a kill during the copy
        write_atomically(directory.config, to_yaml(session.experiment))
        assert isinstance(store.place, SharedDirectory), "a branch begins in a directory"
        _copy(_place_of_parent(RunDirectory(Path(branch.parent)), directory), store.place.root, step=branch.step)
        # downloads of a parent in an object store
        shutil.rmtree(directory.root / _STAGING, ignore_errors=True)
        logger.info("branched off %s after %d steps", branch.parent, branch.step)
    dist.barrier()


def _parse(spec: str) -> tuple[RunDirectory, int | None]:
    run, _, step = spec.rpartition(":")
    return (RunDirectory(Path(run)), int(step)) if run and step.isdigit() else (RunDirectory(Path(spec)), None)


def _existing(directory: RunDirectory, parent: RunDirectory, step: int | None, overrides: Sequence[str]) -> Experiment:
    held = from_yaml(Experiment, directory.config).branch
    if not held.step or step not in (None, held.step) or Path(held.parent).resolve() != parent.root.resolve():
        what = f"the cooldown of {held.parent} after {held.step} steps" if held.step else "a run that is no branch"
        raise RunDirectoryError(
            f"{directory.root} holds {what}, and continuing would mix two runs; choose another --run-dir"
        )
    return load_experiment(file=directory.config, overrides=overrides)


def _place_of_parent(parent: RunDirectory, directory: RunDirectory) -> CheckpointPlace:
    url = from_yaml(Experiment, parent.config).checkpoint.url
    return checkpoint_place(parent, url, staging=directory.root / _STAGING)


def _existing_step(place: CheckpointPlace, step: int | None, *, spec: str) -> int:
    chosen, there = place.latest() if step is None else step, place.steps()
    if chosen is None or chosen not in there:
        missing = "no checkpoint yet" if chosen is None else f"no checkpoint of step {chosen}"
        names = ", ".join(map(step_name, sorted(there)))
        raise RunDirectoryError(f"--cooldown-from {spec}: there is {missing}; there are: {names or 'none'}")
    return chosen


def _end(before: Experiment, step: int) -> int:
    """Returns the default end of a branch, from the parent's fraction of the cooldown."""
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
            f"a cooldown branch may change only train.steps, schedule.final_lr and what every run may change, so this "
            f"is another experiment: {'; '.join(changed)}; leave it out"
        )
    if experiment.train.steps <= branch.step:
        raise RunDirectoryError(
            f"train.steps={experiment.train.steps} is where the branch ends, but it begins after {branch.step} steps; "
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
            f"schedule.final_lr={schedule.final_lr} is above {branch.rate:.3g}, the parent's learning rate after "
            f"{branch.step} steps, so the rate would rise; set it lower"
        )


def _require_own_place(before: Experiment, experiment: Experiment) -> None:
    url = experiment.checkpoint.url
    if "://" in url or (url and url == before.checkpoint.url):
        raise RunDirectoryError(
            f"checkpoint.url={url}: a branch begins with a copy in a directory of its own; leave it empty, or name "
            f"another directory"
        )


def _copy(source: CheckpointPlace, target: Path, *, step: int) -> None:
    checkpoint = committed(source, step=step)
    target.mkdir(parents=True, exist_ok=True)
    temporary = target / f"{checkpoint.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(checkpoint.path, temporary)
    except (OSError, shutil.Error) as error:
        raise CheckpointError(
            f"{checkpoint.path} could not be copied to {target} ({error}); if the parent has deleted it since, branch "
            f"off a later step or raise its checkpoint.keep"
        ) from error
    for path in (*temporary.rglob("*"), temporary):
        sync(path)
    temporary.rename(target / checkpoint.name)
    sync(target)
    write_atomically(target / POINTER_NAME, checkpoint.name + "\n")
