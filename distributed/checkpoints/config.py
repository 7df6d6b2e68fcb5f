"""When checkpoints are made, where they lie, which stay, and what follows when one cannot be written."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pupujepa.errors import UserError, require_known

STOP, GO_ON = "stop", "go_on"


@dataclass(frozen=True)
class CheckpointConfig:
    """Of a run.

    every: steps between checkpoints. keep: how many of the newest stay.
    keep_every: checkpoints whose step is a multiple of this stay for good; 0 for none.
    keep_best: the checkpoint that is best by this key of metrics.jsonl stays, such as "probe/instruments"; "-loss"
        takes the lowest. Empty for none.
    url: s3://bucket/prefix, or another directory; empty takes the run directory.
    background: write while training goes on, from a copy in host memory.
    on_failure: of a checkpoint that cannot be written: "stop" the run, or "go_on" and try again at the next.
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
                f"checkpoint.keep_every={self.keep_every} is no multiple of checkpoint.every={self.every}, so some of "
                f"those steps would have no checkpoint"
            )
        require_known("checkpoint.on_failure", self.on_failure, (STOP, GO_ON))


def kept(steps: Iterable[int], *, keep: int, keep_every: int = 0, best: int | None = None) -> set[int]:
    """Chooses the checkpoints that stay.

    Args:
        steps: of all checkpoints there are.
        keep: how many of the newest stay.
        keep_every: those whose step is a multiple of this stay for good; 0 for none.
        best: stays as well.
    """
    there = set(steps)
    newest = sorted(there, reverse=True)[:keep]
    milestones = {step for step in there if keep_every and step % keep_every == 0}
    return {*newest, *milestones} | ({best} & there if best is not None else set())


def best_step(rows: Iterable[Mapping[str, Any]], metric: str, *, among: Sequence[int]) -> int | None:
    """Finds the checkpoint that is best by a metric; the later one of equals.

    Args:
        rows: of metrics.jsonl. A row of step s was measured on the weights after s steps, which is what the checkpoint
            of step s holds; the last row of a step counts.
        metric: a key such as "probe/instruments"; a leading "-" takes the lowest value, as in "-loss".
        among: steps of the checkpoints that there are.

    Returns:
        None if no checkpoint was measured.
    """
    name, sign = metric.removeprefix("-"), -1.0 if metric.startswith("-") else 1.0
    values = {row["step"]: row[name] for row in rows if row.get(name) is not None and math.isfinite(row[name])}
    measured = [step for step in among if step in values]
    return max(measured, key=lambda step: (sign * values[step], step), default=None)
