"""What follows an alarm of the guard: a snapshot is kept, and, if so configured, the weights are rolled back.

A snapshot is a checkpoint below RUN/alarms, which no retention touches, with two files more: the alarms with the newest
diagnostics, and the probe crops with what teacher and predictor make of them, so that the pictures of the moment can be
drawn later.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.agreement import from_first
from distributed.checkpoint import CheckpointStore
from distributed.diagnose import picture_data
from distributed.guard import ROLLBACK, WARN, Alarm, CollapseGuard
from distributed.host_snapshot import write_state_file
from distributed.rollback import Rollback, newest_healthy, put_back
from distributed.run_directory import RunDirectory
from distributed.run_history import note_rollback

if TYPE_CHECKING:
    from distributed.trainer import Trainer

ALARMS_FOLDER = "alarms"
ALARM_NAME, PICTURES_NAME = "alarm.json", "pictures.safetensors"

logger = logging.getLogger(__name__)


class Responder:
    """Answers alarms; all ranks hold one and call `answer` together.

    Args:
        guard: that of rank 0 counts; the other ranks' see no rows.
    """

    def __init__(self, run: RunDirectory, guard: CollapseGuard):
        self._run, self._guard, self._config = run, guard, guard.config

    def answer(self, alarms: Sequence[Alarm], trainer: "Trainer", row: Mapping[str, Any]) -> None:
        """Does what the guard's action says.

        Args:
            alarms: of rank 0.
            trainer: between two steps, after the diagnostics of `row`.
        """
        if self._config.action == WARN:
            return
        alarms = from_first(list(alarms))
        if not alarms:
            return
        self._keep_snapshot(alarms, trainer, row)
        if self._config.action == ROLLBACK and trainer.step < trainer.total_steps:
            self._roll_back(alarms, trainer)

    def _keep_snapshot(self, alarms: Sequence[Alarm], trainer: "Trainer", row: Mapping[str, Any]) -> None:
        topology = trainer.parts.topology
        store = CheckpointStore(self._run.root / ALARMS_FOLDER, topology, keep=max(1, self._config.max_snapshots))
        if from_first(len(store.steps())) >= self._config.max_snapshots:
            return
        assert trainer.parts.probes is not None
        pictures = picture_data(trainer.parts.step, trainer.parts.model, probes=trainer.parts.probes)

        def write(directory: Path) -> Callable[[], None]:
            write_training = trainer.write_checkpoint(directory)

            def write_all() -> None:
                write_training()
                if topology.is_first:
                    what = {"alarms": [asdict(alarm) for alarm in alarms], "row": dict(row)}
                    what["guard"] = asdict(self._config)
                    (directory / ALARM_NAME).write_text(json.dumps(what, indent=2) + "\n")
                    write_state_file(pictures, directory / PICTURES_NAME)

            return write_all

        names = {"alarms": [alarm.name for alarm in alarms]}
        kept = store.save(trainer.step, write, trainer.checkpoint_facts() | names)
        if topology.is_first:
            logger.warning("kept what the run looked like at step %d in %s", trainer.step, kept.path)

    def _roll_back(self, alarms: Sequence[Alarm], trainer: "Trainer") -> None:
        parts, config = trainer.parts, self._config
        if len(trainer.rollbacks) >= config.max_rollbacks:
            self._say("not rolling back: it was done %d times; a person should look at this run", config.max_rollbacks)
            return
        # no checkpoint may be deleted while one of them is chosen and loaded
        parts.store.poll(wait=True)
        found = newest_healthy(parts.store, self._guard.healthy_step)
        if found is None:
            self._say("not rolling back: no whole checkpoint from before the alarm is there")
            return
        put_back(parts.engine, parts.teacher, found)
        done = Rollback(trainer.step, found.step, config.rollback_lr_factor, tuple(alarm.name for alarm in alarms))
        trainer.adopt(done)
        self._guard.begin_again(trainer.step)
        if parts.topology.is_first:
            note_rollback(self._run, asdict(done))
            self._say(
                "rolled back: the weights are those of step %d again, the samples go on at step %d, and the learning "
                "rate is %g of the schedule's from here on",
                found.step,
                trainer.step,
                trainer.rate_factor,
            )

    def _say(self, message: str, *values: Any) -> None:
        logger.warning(message, *values)
