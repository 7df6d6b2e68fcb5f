"""Putting the last healthy weights back after a collapse, and the record of it that travels with every checkpoint.

Weights, optimiser and teacher come from the healthy checkpoint; the step, and with it the order of the samples, goes
on: the same samples at the same weights would end in the same collapse. From there on the learning rate is a part of
what the schedule says. The record lies inside the checkpoints, so a run that is resumed from one of them knows exactly
the rollbacks that led to its weights.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distributed.agreement import from_first
from distributed.checkpoint import Checkpoint, CheckpointStore
from distributed.host_snapshot import HostSnapshot
from distributed.reshard import load_engine
from distributed.session_state import TEACHER_NAME
from distributed.teacher import Teacher

ROLLBACKS_NAME = "rollbacks.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollback:
    """step: finished steps when it happened. to_step: of the checkpoint that was put back. alarms: their names."""

    step: int
    to_step: int
    lr_factor: float
    alarms: tuple[str, ...]


def rate_factor(rollbacks: Sequence[Rollback]) -> float:
    """Returns what the schedule's learning rate is multiplied with; exactly 1.0 without a rollback."""
    return math.prod(rollback.lr_factor for rollback in rollbacks)


def snapshot_rollbacks(snapshot: HostSnapshot, directory: Path, rollbacks: Sequence[Rollback]) -> None:
    """Adds the record to a checkpoint that is being made; a run without rollbacks has none."""
    if rollbacks:
        snapshot.add(json.dumps([asdict(r) for r in rollbacks], indent=2) + "\n", directory / ROLLBACKS_NAME)


def read_rollbacks(directory: Path) -> tuple[Rollback, ...]:
    """Returns what `snapshot_rollbacks` wrote."""
    path = directory / ROLLBACKS_NAME
    rows = json.loads(path.read_text()) if path.exists() else []
    return tuple(Rollback(**row | {"alarms": tuple(row["alarms"])}) for row in rows)


def newest_healthy(store: CheckpointStore, healthy_step: int | None) -> Checkpoint | None:
    """Finds the newest whole checkpoint of `healthy_step` or before, of whatever world; all ranks together.

    Args:
        healthy_step: of the newest diagnostics without alarm, as rank 0 knows it.
    """
    known, healthy = from_first((store.steps(), healthy_step))
    for step in [s for s in known if healthy is not None and s <= healthy]:
        found = store.verified(step)
        if not isinstance(found, str):
            return found
        logger.warning("not rolling back to it: %s", found)
    return None


def put_back(engine: Any, teacher: Teacher, checkpoint: Checkpoint) -> None:
    """Loads weights, optimiser and teacher of a checkpoint into a running engine; all ranks together.

    Raises:
        CheckpointError: what the manifest says is there does not fit the model.
    """
    load_engine(engine, checkpoint)
    teacher.load(checkpoint.path / TEACHER_NAME)
