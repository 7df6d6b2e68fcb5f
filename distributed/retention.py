"""Which checkpoints stay: the newest n, every m-th step, and the best by a metric of metrics.jsonl."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


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
