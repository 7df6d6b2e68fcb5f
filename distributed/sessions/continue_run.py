"""Checks before a session trains: the same run, its generation, and disk space for its checkpoints."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed.checkpoints.fencing import Fence, take_generation
from distributed.checkpoints.manifest import CheckpointError, read_checkpoint_manifest
from distributed.checkpoints.object_store import ObjectPrefix
from distributed.checkpoints.reading import checkpoint_place
from distributed.checkpoints.shared_directory import CheckpointPlace
from distributed.checkpoints.store import CheckpointStore
from distributed.engine.teacher_shards import full_numel
from distributed.experiment import Experiment, experiment_differences, with_precision
from distributed.processes.collectives import of_first
from distributed.run.directory import RunDirectory, RunDirectoryError, lock_run
from distributed.run.log import readable_rows
from distributed.sessions.history import keep_precision
from distributed.sessions.session import Session
from pupujepa.config import from_yaml
from pupujepa.errors import UserError, unreadable
from pupujepa.precision import ChosenPrecision
from pupujepa.training.objective import TrainingStep

# float32: a weight with the optimiser's copy and two moments of it; a weight of the teacher
_BYTES_PER_PARAMETER, _BYTES_PER_TEACHER_PARAMETER = 16, 4
_MIB = 1 << 20
_SHOWN_DIFFERENCES = 6


def open_checkpoints(session: Session) -> CheckpointStore:
    """Opens the run's checkpoints for reading; `begin_generation` allows writing."""
    config, directory, topology = session.experiment.checkpoint, session.directory, session.topology
    place = checkpoint_place(directory, config.url, topology=topology)
    return CheckpointStore(place, topology, config=config, metrics=directory.metrics)


def begin_generation(session: Session, store: CheckpointStore) -> None:
    """Takes the next generation of the run, which supersedes older starts; all ranks together.

    Raises:
        UserError: nothing can be written there.
    """
    topology, url = session.topology, session.experiment.checkpoint.url
    facts = {"ranks": topology.world_size, "job": os.environ.get("SLURM_JOB_ID")}
    fence = _take_together(session.directory.root, facts)
    if url:
        # another node may have its own run directory
        fence = replace(_take_together(url, facts), beside=fence)
    store.write_as(fence)


def require_disk_space(session: Session, store: CheckpointStore, step: TrainingStep) -> None:
    """Checks before the training that the checkpoints fit and are writable; all ranks together.

    Raises:
        CheckpointError: they do not fit, or cannot be written.
    """
    seen = of_first(lambda: _look(session, store, step))
    if seen.error:
        raise CheckpointError(f"checkpoints cannot be made: {seen.error}")


def _take_together(root: Path | str, facts: Mapping[str, Any]) -> Fence:
    taken = of_first(lambda: {"fence": take_generation(root, facts=facts)})
    if taken.error:
        raise UserError(taken.error)
    return taken.result["fence"]


def _look(session: Session, store: CheckpointStore, step: TrainingStep) -> dict[str, int]:
    config, place = session.experiment.checkpoint, store.place
    in_store = isinstance(place, ObjectPrefix)
    folder = place.staging if isinstance(place, ObjectPrefix) else store.root
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0")
        file.flush()
        os.fsync(file.fileno())
    size_bytes = _size_of_last(store) or _expected_bytes(step)
    # retention deletes after the new checkpoint is complete
    wanted = 1 if in_store else config.keep + 1 + bool(config.keep_best)
    missing = max(1, wanted - (0 if in_store else len(store.steps())))
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < missing * size_bytes:
        raise CheckpointError(
            f"{folder} has {free_bytes / _MIB:.0f} MiB free, and {missing} more of {size_bytes / _MIB:.0f} MiB each "
            f"must fit there; free space, lower checkpoint.keep, or choose another --run-dir or checkpoint.url"
        )
    return {}


def _size_of_last(store: CheckpointStore) -> int:
    return read_checkpoint_manifest(store.last.path).size_bytes if store.last else 0


def _expected_bytes(step: TrainingStep) -> int:
    numbers = sum(full_numel(p) for p in step.parameters())
    of_teacher = sum(full_numel(p) for p in step.student.parameters())
    return _BYTES_PER_PARAMETER * numbers + _BYTES_PER_TEACHER_PARAMETER * of_teacher + _MIB


class SameRun:
    """Keeps another experiment out of the directory of a run.

    It is checked before the slow start and again with the lock, because another start may write config.yaml in between.
    Only a changed file is read again, which takes a second.

    Args:
        fresh: refuse any run in the directory.
    """

    def __init__(self, directory: RunDirectory, experiment: Experiment, *, fresh: bool):
        self._directory, self._asked, self._fresh = directory, experiment, fresh
        self._experiment = experiment
        self._seen: bytes | None = b"unread"

    def check(self) -> Experiment:
        """Returns the experiment with the precision of the run; every rank reads the same files.

        Raises:
            RunDirectoryError: another run, with the first differences, or a run that has lost its checkpoints.
            UserError: the files of the run cannot be read now.
        """
        config = self._directory.config
        try:
            content = config.read_bytes()
        except FileNotFoundError:
            content = None
        except OSError as error:
            raise unreadable(config, error) from error
        if content != self._seen:
            self._experiment = keep_precision(self._directory, self._asked)
            _require_same_run(self._directory, self._experiment, fresh=self._fresh)
            self._seen = content
        return self._experiment

    def lock(self, stack: ExitStack) -> Experiment:
        """Locks the directory for rank 0 until the stack closes, and returns as `check`; all ranks together.

        Raises:
            RunDirectoryError: as `check`, or another process writes there.
        """

        def lock_and_check() -> dict[str, Experiment]:
            stack.enter_context(lock_run(self._directory, check=self.check))
            return {"experiment": self._experiment}

        locked = of_first(lock_and_check)
        if locked.error:
            raise RunDirectoryError(locked.error)
        return locked.result["experiment"]


def _require_same_run(directory: RunDirectory, experiment: Experiment, *, fresh: bool) -> None:
    place = checkpoint_place(directory, experiment.checkpoint.url)
    holds_checkpoints = bool(place.steps())
    if fresh and (directory.config.exists() or holds_checkpoints):
        raise RunDirectoryError(
            f"--fresh was asked for, but {directory.root} holds a run; choose another --run-dir, or leave out --fresh "
            f"to continue it"
        )
    if not directory.config.exists():
        if holds_checkpoints:
            raise RunDirectoryError(
                f"{directory.root} holds checkpoints but no config.yaml, so their settings are unknown; restore it "
                f"from the newest of them, in {experiment.checkpoint.url or directory.checkpoints}"
            )
        return
    before = from_yaml(Experiment, directory.config)
    # a config.yaml written by hand may hold "auto"
    changed = experiment_differences(
        with_precision(before, ChosenPrecision(experiment.engine.precision, "")), experiment
    )
    if changed:
        more = f" and {len(changed) - _SHOWN_DIFFERENCES} more" if len(changed) > _SHOWN_DIFFERENCES else ""
        raise RunDirectoryError(
            f"{directory.root} holds another run: {'; '.join(changed[:_SHOWN_DIFFERENCES])}{more}; continuing "
            f"would mix the two; choose another --run-dir, or give the settings of that run"
        )
    if not holds_checkpoints:
        _require_none_was_made(directory, experiment, place)


def _require_none_was_made(directory: RunDirectory, experiment: Experiment, place: CheckpointPlace) -> None:
    rows = readable_rows(directory.metrics)
    trained = rows[-1]["step"] if rows else 0
    begun = experiment.branch.step
    if place.latest() is not None or trained > begun + experiment.checkpoint.every:
        raise RunDirectoryError(
            f"{directory.root} was trained to step {trained}, but its checkpoints are gone, and training does not "
            f"start again over the log of a run; restore them, or choose another --run-dir"
        )
