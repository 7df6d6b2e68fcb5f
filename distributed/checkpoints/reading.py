"""Checkpoints for other readers than the training: find one and verify it."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from distributed.checkpoints.manifest import (
    Checkpoint,
    CheckpointError,
    checkpoint_at,
    read_checkpoint_manifest,
    step_name,
)
from distributed.checkpoints.object_store import ObjectPrefix
from distributed.checkpoints.shared_directory import POINTER_NAME, CheckpointPlace, SharedDirectory
from distributed.processes.topology import Topology
from distributed.run.directory import RunDirectory
from pupujepa.errors import UserError

# a reader verifies all files alone
_ALONE = Topology()


@dataclass(frozen=True)
class Inspection:
    """Facts about a checkpoint, from its manifest; `fault` is "" if it is whole."""

    step: int
    size_bytes: int
    world_size: int | None
    zero_stage: int | None
    generation: int | None
    fault: str


def checkpoint_place(
    directory: RunDirectory, url: str = "", *, topology: Topology = _ALONE, staging: Path | None = None
) -> CheckpointPlace:
    """Returns the place of a run's checkpoints.

    Args:
        url: checkpoint.url of its configuration.
        topology: of the caller; each machine has its own downloads from an object store.
        staging: folder for downloads, for a reader beside the training.
    """
    if url and "://" in url:
        # two "nodes" can share a machine, so the host name is not unique
        node = f"{socket.gethostname()}-{topology.rank - topology.local_rank}"
        return ObjectPrefix(url, staging=staging or directory.checkpoints / f"staging-{node}")
    return SharedDirectory(Path(url) if url else directory.checkpoints)


def committed(place: Path | CheckpointPlace, *, step: int | None = None) -> Checkpoint:
    """Returns the verified checkpoint of `step`, or of LATEST.

    Raises:
        CheckpointError: it does not exist or is damaged.
    """
    place = SharedDirectory(place) if isinstance(place, Path) else place
    chosen = place.latest() if step is None else step
    if chosen is None:
        raise CheckpointError(
            f"{_where(place)} has no {POINTER_NAME}: the run has not finished a checkpoint yet; wait, or train"
        )
    there = place.steps()
    if chosen not in there:
        names = ", ".join(map(step_name, sorted(there)))
        raise CheckpointError(
            f"there is no checkpoint {_where(place)}/{step_name(chosen)}; there are: {names or 'none'}"
        )
    if damage := place.damage(chosen, _ALONE):
        raise CheckpointError(f"{damage}; continue the run, which falls back to an older one, or restore a copy")
    return checkpoint_at(place.path(chosen))


def inspect(place: CheckpointPlace, step: int) -> Inspection:
    """Verifies a checkpoint and returns its facts."""
    fault = ""
    try:
        damage = place.damage(step, _ALONE)
        fault = damage and f"damaged: {damage}"
        manifest = read_checkpoint_manifest(place.path(step))
    except UserError as error:
        return Inspection(step, 0, None, None, None, fault or f"not verified: {error}")
    facts = manifest.facts
    told = (facts.get("world_size"), facts.get("zero_stage"), facts.get("generation"))
    return Inspection(step, manifest.size_bytes, *told, fault)


def _where(place: CheckpointPlace) -> str:
    return place.store.url if isinstance(place, ObjectPrefix) else os.fspath(place.root)  # type: ignore[attr-defined]
