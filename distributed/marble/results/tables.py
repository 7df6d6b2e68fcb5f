"""Tables of one results folder: tasks down, encoders across, and differences between protocols."""

from collections.abc import Mapping, Sequence
from typing import Any

from distributed.drawing.tables import ABSENT, Cell, Group, Table, texts
from distributed.drawing.wording import fixed, interval
from distributed.marble.metrics.metrics import METRICS
from distributed.marble.results.protocols import comparison
from distributed.marble.tasks.marble_tasks import task_title

Row = Mapping[str, Any]

EXPLAINED = {
    "clean": "best epoch on validation, exact metrics, standardised features; layer and learning rate chosen on "
    "validation; 95 % intervals over pieces",
    "marble": "last epoch, monitors as MARBLE v2 logs them, raw features; the config's learning rate, the layer chosen "
    "on validation; 95 % intervals over pieces",
}


def result_tables(rows: Sequence[Row]) -> list[Table]:
    """Returns a table for each protocol, and one that compares them for tasks measured under both."""
    tables = [_table(protocol, rows) for protocol in dict.fromkeys(r["protocol"] for r in rows)]
    both = comparison(rows)
    return [*tables, both] if both else tables


def score_cell(row: Row, best: float) -> Cell:
    """Returns a score with its interval, emphasised if it is the best of its task."""
    value = row["value"]
    return Cell(fixed(value), interval(*row["interval"]), strong=value == best, value=value)


def metric_title(metric: str) -> str:
    """Returns a metric's title; its name if this version lacks it."""
    return METRICS[metric].title if metric in METRICS else metric


def _table(protocol: str, rows: Sequence[Row]) -> Table:
    own = [r for r in rows if r["protocol"] == protocol]
    encoders = list(dict.fromkeys(r["encoder"] for r in own))
    cells = {(r["task"], r["encoder"]): r for r in own}
    lines = []
    for name in dict.fromkeys(r["task"] for r in own):
        of_task = [cells.get((name, e)) for e in encoders]
        there = [r for r in of_task if r]
        best = max(r["value"] for r in there)
        title = f"{task_title(name)} ({metric_title(there[0]['metric'])})"
        lines.append((Cell(title), *(score_cell(r, best) if r else ABSENT for r in of_task)))
    head = texts("task", *encoders)
    return Table(f"Protocol {protocol}", head, (Group("", tuple(lines)),), (f"{EXPLAINED[protocol]}.",))
