"""The end of a session, however it comes: the log is closed with its outcome, and a failure leaves a record per rank.

A finished or stopped session has said everything in metrics.jsonl. One that fails cannot add up its ranks any more, so
each rank that still can writes RUN/failed-step-S-rank-R.json: the step that was not finished, the error, and what this
rank's stream had counted since the last row, which would be lost otherwise.
"""

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from distributed.fencing import SupersededError
from distributed.run_directory import write_json
from distributed.wandb_log import FAILED, FINISHED, STOPPED

if TYPE_CHECKING:
    from distributed.trainer import Trainer

logger = logging.getLogger(__name__)


class SessionEnd(AbstractContextManager[None]):
    """Surrounds everything that a trainer does."""

    def __init__(self, trainer: "Trainer", run_root: Path):
        self._trainer, self._run_root = trainer, run_root

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        trainer = self._trainer
        if error is not None:
            outcome = FAILED
            # a leftover of the run has no say in its directory any more
            if not isinstance(error, SupersededError):
                self._write_record(error)
        else:
            outcome = FINISHED if trainer.step == trainer.total_steps else STOPPED
        for sink in trainer.parts.sinks:
            sink.close(outcome)

    def _write_record(self, error: BaseException) -> None:
        trainer, rank = self._trainer, self._trainer.parts.topology.rank
        path = self._run_root / f"failed-step-{trainer.step:07d}-rank-{rank}.json"
        what = {"step": trainer.step, "rank": rank, "error": f"{type(error).__name__}: {error}"}
        try:
            write_json(path, what | trainer.unsaid_counts())
        except OSError as failure:
            # the error that ended the session is the one to hear of
            logger.warning("%s could not be written: %s", path, failure)
