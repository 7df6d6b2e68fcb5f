"""Alarms: the guard reads the rows on rank 0, and all ranks act on its alarms together.

A snapshot is a checkpoint below RUN/alarms, which retention does not delete, with two more files: the alarms with the
newest diagnostics, and the fixed crops with the outputs of teacher and predictor, for pictures of the moment.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distributed.checkpoints.snapshot import write_state_file
from distributed.checkpoints.state import Checkpoints
from distributed.checkpoints.store import CheckpointStore
from distributed.processes.collectives import from_first
from distributed.processes.topology import Topology
from distributed.run.wandb import FINISHED
from distributed.watch.config import STOP, WARN
from distributed.watch.diagnose import picture_data
from distributed.watch.fixed_crops import FixedCrops
from distributed.watch.guard import Alarm, CollapseGuard
from pupujepa.model.model import PupuJEPA
from pupujepa.training.objective import TrainingStep

ALARMS_FOLDER = "alarms"
ALARM_NAME, PICTURES_NAME = "alarm.json", "pictures.safetensors"
# the guard stopped the run; a scheduler must not restart it, as it would collapse again
EXIT_CODE_COLLAPSED = 87

logger = logging.getLogger(__name__)


class Alarms:
    """A sink of rank 0 that shows each row to the guard; all ranks hold one and call `respond` together."""

    def __init__(self, guard: CollapseGuard, checkpoints: Checkpoints, *, topology: Topology, run_root: Path):
        self._guard, self._checkpoints, self._topology = guard, checkpoints, topology
        self._root = run_root / ALARMS_FOLDER
        self._new: list[Alarm] = []

    def write(self, row: Mapping[str, Any]) -> None:
        """Warns of every new alarm."""
        for alarm in self._guard.observe(row):
            logger.warning("step %d: %s: %s", row["step"], alarm.name, alarm.sentence)
            self._new.append(alarm)

    def close(self, outcome: str = FINISHED) -> None:
        """Holds nothing."""

    def respond(self, row: Mapping[str, Any], step: TrainingStep, model: PupuJEPA, crops: FixedCrops) -> bool:
        """Acts on the alarms of a written row as guard.action says, all ranks together; True stops the run."""
        config, self._new, new = self._guard.config, [], self._new  # each alarm is acted on once
        if config.action == WARN:
            return False
        alarms = from_first(new)  # only rank 0 reads rows, but all must decide alike
        if not alarms:
            return False
        store = CheckpointStore(self._root, self._topology, keep=max(1, config.max_snapshots))
        if from_first(len(store.steps())) < config.max_snapshots:
            # all ranks run the model for the pictures, so not without need
            self._keep_snapshot(store, alarms, row, picture_data(step, model, crops=crops))
        return config.action == STOP

    def _keep_snapshot(
        self, store: CheckpointStore, alarms: Sequence[Alarm], row: Mapping[str, Any], pictures: Mapping[str, Any]
    ) -> None:
        config = self._guard.config

        def write(directory: Path) -> Callable[[], None]:
            write_training = self._checkpoints.snapshot(directory)  # copies now, writes when called

            def write_all() -> None:
                write_training()
                if self._topology.is_first:
                    told = {"alarms": [asdict(alarm) for alarm in alarms], "row": dict(row), "guard": asdict(config)}
                    (directory / ALARM_NAME).write_text(json.dumps(told, indent=2) + "\n")
                    write_state_file(pictures, directory / PICTURES_NAME)

            return write_all

        names = {"alarms": [alarm.name for alarm in alarms]}
        kept = store.save(row["step"], write, self._checkpoints.facts | names)
        if self._topology.is_first:
            logger.warning("kept a snapshot of step %d in %s", row["step"], kept.path)
