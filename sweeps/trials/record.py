"""trial.json: how a trial went. A trial that diverged or crashed leaves its record and the tail of its log, always."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from distributed.run.directory import write_json
from pupujepa.json_lines import parse_rows, read_rows
from sweeps.plan.plan import PlannedTrial

Status = Literal["waiting", "running", "stopped", "finished", "diverged", "crashed", "pruned"]
LOG_TAIL_LINES = 25


@dataclass(frozen=True)
class Record:
    """How a trial went.

    Attributes:
        digest: of the trial that this is the record of.
        session: the start of the sweep in which it was written.
        status: stopped: its trainer was asked to stop, and saved. Waiting and running mean, once no sweep runs any
            more, that it was not reached and that it was killed. Pruned: ended by the scheduler, behind others.
        reason: one sentence about a failure.
        log_tail: the last lines of the failed command's output.
        train_s: seconds of training, over all starts of the trial.
        evaluate_s: seconds of evaluation, likewise.
        commands: what was executed.
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
        return self.status in ("diverged", "crashed")

    @property
    def is_over(self) -> bool:
        """True when no session tries the trial again: the same would come of it."""
        return self.status in ("diverged", "pruned")

    def but(self, **changes: Any) -> "Record":
        """Returns a copy with `changes`."""
        return replace(self, **changes)


def read_record(planned: PlannedTrial, out: Path) -> Record:
    """Returns the record of a trial; a waiting one when it never started."""
    path = out / planned.directory / "trial.json"
    if not path.is_file():
        return Record(planned.digest)
    raw = json.loads(path.read_text())
    return Record(**{**raw, "log_tail": tuple(raw["log_tail"])})


def write_record(record: Record, planned: PlannedTrial, out: Path) -> Record:
    """Writes trial.json atomically and returns the record."""
    directory = out / planned.directory
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "trial.json", asdict(record))
    return record


def is_finished(planned: PlannedTrial, out: Path) -> bool:
    """True when the trial has its results and they belong to exactly this trial."""
    record = read_record(planned, out)
    has_results = (out / planned.directory / "results.jsonl").is_file()
    return record.status == "finished" and record.digest == planned.digest and has_results


def read_results(planned: PlannedTrial, out: Path) -> list[dict[str, Any]]:
    """Returns the rows of the evaluator for the trial's own encoder; none when it did not finish."""
    path = out / planned.directory / "results.jsonl"
    if not is_finished(planned, out):
        return []
    return read_rows(path)


def score_on(split: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the score of an evaluator's row on the split that the sweep compares: test or valid."""
    if split == "valid":
        return {key: row["selection"][key] for key in ("metric", "value", "interval", "items")}
    return {**{key: row[key] for key in ("metric", "value", "interval")}, "items": row["test_items"]}


def tail(log: Path) -> tuple[str, ...]:
    """Returns the last lines of a log; progress bars that overwrite themselves count as one line."""
    if not log.is_file():
        return ()
    lines = log.read_bytes().decode(errors="replace").rstrip("\n").split("\n")
    return tuple(line.rpartition("\r")[2] for line in lines[-LOG_TAIL_LINES:])


class MetricsTail:
    """Follows a metrics.jsonl that another process appends to, and replaces by a shorter one when it resumes."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0
        self._inode = 0

    def new_rows(self) -> list[dict[str, Any]]:
        """Returns the whole rows that came since the last call; a line without its end is left for the next one."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._offset = inode, 0
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return parse_rows(whole.decode(), origin=str(self._path))


def divergence(run_dir: Path) -> str:
    """Returns the trainer's record of the divergence that ended it (watch/faulty_steps.py); "" for none."""
    found = sorted(run_dir.glob("diverged-step-*-rank-*.json"))
    if not found:
        return ""
    said = json.loads(found[-1].read_text())
    return f"{said['what']} at step {said['step']}, the last of {said['in_row']} in a row"


def lost_its_loss(row: dict[str, Any]) -> bool:
    """True for a logged step whose loss is not finite (NaN, infinite or null)."""
    return "loss" in row and (row["loss"] is None or not math.isfinite(row["loss"]))
