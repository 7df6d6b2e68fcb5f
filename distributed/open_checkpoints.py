"""The checkpoints of a session: where they lie, the generation that may write there, and whether they will fit."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed.agreement import of_first
from distributed.checkpoint import CheckpointError, CheckpointStore
from distributed.checkpoint_files import read_manifest
from distributed.checkpoint_objects import ObjectPrefix
from distributed.checkpoint_reading import place_of
from distributed.fencing import Fence, take_generation
from distributed.session import Session
from distributed.teacher_shards import full_numel
from pupujepa.errors import UserError
from pupujepa.training.objective import TrainingStep

# float32: the weights, what the optimiser keeps of each of them (a copy and two moments), and the teacher
_BYTES_PER_PARAMETER, _BYTES_PER_TEACHER_PARAMETER = 16, 4
_MIB = 1 << 20


def open_checkpoints(session: Session) -> CheckpointStore:
    """The checkpoints of the session's run, to be read; `begin_generation` lets them be written."""
    config, directory, topology = session.experiment.checkpoint, session.directory, session.topology
    place = place_of(directory, config.url, topology=topology)
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


def require_room(session: Session, store: CheckpointStore, step: TrainingStep) -> None:
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
    return read_manifest(store.last.path).size_bytes if store.last else 0


def _expected_bytes(step: TrainingStep) -> int:
    numbers = sum(full_numel(p) for p in step.parameters())
    of_teacher = sum(full_numel(p) for p in step.student.parameters())
    return _BYTES_PER_PARAMETER * numbers + _BYTES_PER_TEACHER_PARAMETER * of_teacher + _MIB
