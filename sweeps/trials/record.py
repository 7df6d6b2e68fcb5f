"""The record of a trial, trial.json; a failed trial leaves its reason and the tail of its log there."""

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from distributed.run.directory import write_json
from distributed.watch.alarms import ALARM_NAME, ALARMS_FOLDER
from distributed.watch.config import STOP
from pupujepa.json_lines import parse_rows, read_rows
from sweeps.plan.plan import PlannedTrial

Status = Literal["waiting", "running", "stopped", "finished", "diverged", "collapsed", "crashed", "pruned"]
LOG_TAIL_LINES = 25
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """Outcome of a trial.

    Attributes:
        digest: of the trial.
        session: the start of the sweep that wrote the record.
        status: stopped: the trainer was asked to stop, and saved. Collapsed: the run's guard stopped it. Pruned: the
            scheduler ended it, behind others. Once no sweep runs, waiting means not reached, and running killed.
        reason: one sentence about a failure.
        log_tail: the last lines of the failed command's output.
        train_s: seconds of training, over all starts of the trial.
        evaluate_s: seconds of evaluation, over all starts.
        commands: argv of each phase.
    """

    digest: str
    session: str = ""
    status: Status = "waiting"
    reason: str = ""
    log_tail: tuple[str, ...] = ()
    train_s: float = 0.0
    evaluate_s: float = 0.0
    commands: dict[str, list[str]] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """True when a command of the trial ended without its result."""
        return self.status in ("diverged", "collapsed", "crashed")

    @property
    def is_over(self) -> bool:
        """True when no session tries the trial again, because the outcome would be the same."""
        return self.status in ("diverged", "collapsed", "pruned")

    def but(self, **changes: Any) -> "Record":
        """Returns a copy with `changes`."""
        return replace(self, **changes)


def read_record(planned: PlannedTrial, out: Path) -> Record:
    """Returns the record of a trial; "waiting" if it never started or, with a warning, if it is damaged."""
    path = out / planned.directory / "trial.json"
    if not path.is_file():
        return Record(planned.digest)
    try:
        raw = json.loads(path.read_bytes())
        return Record(**{**raw, "log_tail": tuple(raw["log_tail"])})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        # the trial continues from its checkpoints, which its own run directory checks
        logger.warning("%s is damaged (%s): the trial counts as waiting", path, error)
        return Record(planned.digest)


def write_record(record: Record, planned: PlannedTrial, out: Path) -> Record:
    """Writes trial.json atomically and returns the record."""
    directory = out / planned.directory
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "trial.json", asdict(record))
    return record


def is_finished(planned: PlannedTrial, out: Path) -> bool:
    """Returns True when the trial has results and its record has the planned digest."""
    record = read_record(planned, out)
    has_results = (out / planned.directory / "results.jsonl").is_file()
    return record.status == "finished" and record.digest == planned.digest and has_results


def read_trial_results(planned: PlannedTrial, out: Path) -> list[dict[str, Any]]:
    """Returns the evaluator's rows for the trial's encoder; empty if the trial is not finished."""
    return read_rows(out / planned.directory / "results.jsonl") if is_finished(planned, out) else []


def score_on(split: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the score of an evaluator's row on the compared split, "test" or "valid"."""
    if split == "valid":
        return {key: row["selection"][key] for key in ("metric", "value", "interval", "items")}
    return {**{key: row[key] for key in ("metric", "value", "interval")}, "items": row["test_items"]}


def tail(log: Path) -> tuple[str, ...]:
    """Returns the last lines of a log; all states of a progress bar count as one line."""
    if not log.is_file():
        return ()
    lines = log.read_bytes().decode(errors="replace").rstrip("\n").split("\n")
    # a bar overwrites itself with carriage returns: keep its last state
    return tuple(line.rpartition("\r")[2] for line in lines[-LOG_TAIL_LINES:])


class MetricsTail:
    """Reader of a metrics.jsonl that another process appends to, or replaces when it resumes."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0
        self._inode = 0

    def new_rows(self) -> list[dict[str, Any]]:
        """Returns the rows since the last call; leaves a line without its end for the next call."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            # a resumed run writes a new, shorter file: read it from its start
            if inode != self._inode:
                self._inode, self._offset = inode, 0
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return parse_rows(whole.decode(), origin=str(self._path))


def divergence(run_dir: Path) -> str:
    """Returns the trainer's record of its divergence (watch/faulty_steps.py); "" for none."""
    found = sorted(run_dir.glob("diverged-step-*-rank-*.json"))
    if not found:
        return ""
    said = json.loads(found[-1].read_text())
    return f"{said['what']} at step {said['step']}, the last of {said['in_row']} in a row"


def guard_stop(run_dir: Path) -> str:
    """Returns the alarm at which the guard stopped the run (watch/alarms.py); "" for none."""
    found = sorted((run_dir / ALARMS_FOLDER).glob(f"*/{ALARM_NAME}"))
    said = json.loads(found[-1].read_text()) if found else {}
    if not found or said["guard"]["action"] != STOP:
        return ""
    return f"{' and '.join(alarm['name'] for alarm in said['alarms'])} at step {said['row']['step']}"


def lost_its_loss(row: dict[str, Any]) -> bool:
    """Returns True for a logged step with a loss that is not finite (NaN, infinite or null)."""
    return "loss" in row and (row["loss"] is None or not math.isfinite(row["loss"]))
