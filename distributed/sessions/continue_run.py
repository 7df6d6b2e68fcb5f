"""The checkpoints of a session: where they lie, the generation that may write there, and whether they will fit."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from distributed.checkpoints.fencing import Fence, take_generation
from distributed.checkpoints.manifest import read_checkpoint_manifest
from distributed.checkpoints.object_store import ObjectPrefix
from distributed.checkpoints.reading import checkpoint_place
from distributed.checkpoints.shared_directory import CheckpointPlace, SharedDirectory
from distributed.checkpoints.store import POINTER_NAME, CheckpointError, CheckpointStore, committed
from distributed.engine.teacher_shards import full_numel
from distributed.experiment import Experiment, experiment_differences, with_precision
from distributed.processes.collectives import of_first
from distributed.run.directory import RunDirectory, RunDirectoryError, write_atomically
from distributed.run.log import read_metrics
from distributed.sessions.cooldown import _STAGING, _place_of_parent, logger
from distributed.sessions.session import Session
from pupujepa.config import from_yaml, to_yaml
from pupujepa.durable import sync
from pupujepa.errors import UserError
from pupujepa.precision import ChosenPrecision
from pupujepa.training.objective import TrainingStep

# float32: the weights, what the optimiser keeps of each of them (a copy and two moments), and the teacher
_BYTES_PER_PARAMETER, _BYTES_PER_TEACHER_PARAMETER = 16, 4
_MIB = 1 << 20


def open_checkpoints(session: Session) -> CheckpointStore:
    """The checkpoints of the session's run, to be read; `begin_generation` lets them be written."""
    config, directory, topology = session.experiment.checkpoint, session.directory, session.topology
    place = checkpoint_place(directory, config.url, topology=topology)
    return CheckpointStore(place, topology, config=config, metrics=directory.metrics)


def begin_generation(session: Session, store: CheckpointStore) -> None:
    """Takes the next generation of the run, so that no older start of it writes any more; all ranks together.

    Raises:
        UserError: nothing can be written there.
    """
    topology, url = session.topology, session.experiment.checkpoint.url
    facts = {"ranks": topology.world_size, "job": os.environ.get("SLURM_JOB_ID")}
    fence = _take_together(session.directory.root, facts)
    if url:
        # another node may have a run directory of its own
        fence = replace(_take_together(url, facts), beside=fence)
    store.write_as(fence)


def require_disk_space(session: Session, store: CheckpointStore, step: TrainingStep) -> None:
    """Makes sure, before anything is trained, that the checkpoints will fit and may be written; all ranks together.

    Raises:
        CheckpointError: they will not, with what they take and what there is.
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
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"0")
        probe.flush()
        os.fsync(probe.fileno())
    size_bytes = _size_of_last(store) or _expected_bytes(step)
    # the new one is there before an old one goes
    wanted = 1 if in_store else config.keep + 1 + bool(config.keep_best)
    missing = max(1, wanted - (0 if in_store else len(store.steps())))
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < missing * size_bytes:
        raise CheckpointError(
            f"{folder} has {free_bytes / _MIB:.0f} MiB free, and {missing} more of {size_bytes / _MIB:.0f} MiB each "
            f"must fit there, so the disk would be full before training ends; free space, lower checkpoint.keep, or "
            f"give another --run-dir or checkpoint.url"
        )
    return {}


def _size_of_last(store: CheckpointStore) -> int:
    return read_checkpoint_manifest(store.last.path).size_bytes if store.last else 0


def _expected_bytes(step: TrainingStep) -> int:
    numbers = sum(full_numel(p) for p in step.parameters())
    of_teacher = sum(full_numel(p) for p in step.student.parameters())
    return _BYTES_PER_PARAMETER * numbers + _BYTES_PER_TEACHER_PARAMETER * of_teacher + _MIB


_SHOWN_DIFFERENCES = 6


def require_same_run(directory: RunDirectory, experiment: Experiment, *, fresh: bool) -> None:
    """Refuses to train another experiment in the directory of a run, or to begin again what has lost its checkpoints.

    Every rank comes to the same verdict from the same files; call it before any of them is written.

    Raises:
        RunDirectoryError: with the first differences, or what is missing.
    """
    place = checkpoint_place(directory, experiment.checkpoint.url)
    holds_checkpoints = bool(place.steps())
    if fresh and (directory.config.exists() or holds_checkpoints):
        raise RunDirectoryError(
            f"--fresh was asked for, but {directory.root} holds a run, which would be lost; choose another --run-dir, "
            f"or leave out --fresh to continue it"
        )
    if not directory.config.exists():
        if holds_checkpoints:
            raise RunDirectoryError(
                f"{directory.root} holds checkpoints but no config.yaml, so it is not known what they were trained "
                f"with; restore it from the newest of them, in {experiment.checkpoint.url or directory.checkpoints}"
            )
        return
    before = from_yaml(Experiment, directory.config.read_text())
    # a config.yaml written by hand may leave the choice open
    changed = experiment_differences(
        with_precision(before, ChosenPrecision(experiment.engine.precision, "")), experiment
    )
    if changed:
        more = f" and {len(changed) - _SHOWN_DIFFERENCES} more" if len(changed) > _SHOWN_DIFFERENCES else ""
        raise RunDirectoryError(
            f"{directory.root} holds another run: {'; '.join(changed[:_SHOWN_DIFFERENCES])}{more}; going on would mix "
            f"the two: choose another --run-dir, or give the settings that the run was started with"
        )
    if not holds_checkpoints:
        _require_none_was_made(directory, experiment, place)


def _require_none_was_made(directory: RunDirectory, experiment: Experiment, place: CheckpointPlace) -> None:
    rows = read_metrics(directory.metrics)
    trained = rows[-1]["step"] if rows else 0
    begun = experiment.branch.step
    if place.latest() is not None or trained > begun + experiment.checkpoint.every:
        raise RunDirectoryError(
            f"{directory.root} was trained to step {trained}, but its checkpoints are gone, and training does not "
            f"begin again over the log of a run; restore them, or choose another --run-dir"
        )


def adopt_checkpoint(session: Session, store: CheckpointStore) -> None:
    """Copies the parent's checkpoint into a branch that has none yet; nothing to do for other runs. All ranks together.

    Raises:
        CheckpointError: the checkpoint is damaged or was deleted meanwhile, or the ranks saw different ones.
    """
    branch, directory = session.experiment.branch, session.directory
    if not branch.step:
        return
    seen: list[int] = [0] * session.topology.world_size
    dist.all_gather_object(seen, branch.step)
    if len(set(seen)) > 1:
        raise CheckpointError(
            f"{branch.parent} made a checkpoint while the ranks looked for its newest (steps {sorted(set(seen))}), and "
            f"ranks that begin at different steps would wait for each other; name one: --cooldown-from RUN:STEP"
        )
    if session.topology.is_first and not store.steps():
        # first, so that a kill during the copy leaves a directory that the same command takes up again
        write_atomically(directory.config, to_yaml(session.experiment))
        assert isinstance(store.place, SharedDirectory), "a branch begins in a directory"
        _copy(_place_of_parent(RunDirectory(Path(branch.parent)), directory), store.place.root, step=branch.step)
        # a parent in an object store was downloaded to be verified
        shutil.rmtree(directory.root / _STAGING, ignore_errors=True)
        logger.info("branched off %s after %d steps", branch.parent, branch.step)
    dist.barrier()


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
