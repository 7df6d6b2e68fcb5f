"""Checkpoint settings, and the rule of retention."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pupujepa.errors import UserError, require_known

STOP, GO_ON = "stop", "go_on"


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of a run.

    every: steps between checkpoints. keep: number of newest checkpoints to keep.
    keep_every: keep all checkpoints at multiples of this step; 0 for none.
    keep_best: keep the best checkpoint by this key of metrics.jsonl, such as "probe/instruments"; "-loss" takes the
        lowest. Empty for none.
    url: s3://bucket/prefix or another directory; empty takes the run directory.
    background: write during training, from a copy in host memory.
    on_failure: if a checkpoint cannot be written, "stop" the run, or "go_on" and try the next one.
    """

    every: int = 1000
    keep: int = 2
    keep_every: int = 0
    keep_best: str = ""
    url: str = ""
    background: bool = True
    on_failure: str = STOP

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise UserError(f"checkpoint.every={self.every} and checkpoint.keep={self.keep} must be at least 1")
        if self.keep_every % self.every:
            raise UserError(
                f"checkpoint.keep_every={self.keep_every} is not a multiple of checkpoint.every={self.every}, so "
                f"some of those steps would have no checkpoint; use a multiple"
            )
        require_known("checkpoint.on_failure", self.on_failure, (STOP, GO_ON))


def kept(steps: Iterable[int], *, keep: int, keep_every: int = 0, best: int | None = None) -> set[int]:
    """Returns the checkpoints to keep of `steps`: the newest, the milestones and the best."""
    there = set(steps)
    newest = sorted(there, reverse=True)[:keep]
    milestones = {step for step in there if keep_every and step % keep_every == 0}
    return {*newest, *milestones} | ({best} & there if best is not None else set())


def best_step(rows: Iterable[Mapping[str, Any]], metric: str, *, among: Sequence[int]) -> int | None:
    """Returns the step of the best checkpoint by a metric; None if none was measured.

    The later one of equals is best.

    Args:
        rows: of metrics.jsonl; the last row of a step counts. Rows with probes describe the weights of that checkpoint.
        metric: a key such as "probe/instruments"; a leading "-" takes the lowest value, as in "-loss".
        among: steps of the existing checkpoints.
    """
    name, sign = metric.removeprefix("-"), -1.0 if metric.startswith("-") else 1.0
    values = {row["step"]: row[name] for row in rows if row.get(name) is not None and math.isfinite(row[name])}
    measured = [step for step in among if step in values]
    return max(measured, key=lambda step: (sign * values[step], step), default=None)
