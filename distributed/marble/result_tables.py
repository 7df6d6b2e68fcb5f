"""The tables of one results folder: tasks down, encoders across, and what differs between the protocols."""

from collections.abc import Mapping, Sequence
from typing import Any

from distributed.drawing.tables import ABSENT, Cell, Group, Table
from distributed.marble.marble_tasks import ALL_TASKS
from distributed.marble.metrics import METRICS
from distributed.marble.protocols import comparison

EXPLAINED = {
    "clean": "best epoch on validation, exact metrics, standardised features; layer and learning rate chosen on "
    "validation; 95 % intervals over pieces",
    "marble": "last epoch, monitors as MARBLE v2 logs them, raw features; the config's learning rate, the layer chosen "
    "on validation; 95 % intervals over pieces",
}


def result_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Returns one table for each protocol, and one of both where tasks were measured under both."""
    tables = [_table(protocol, rows) for protocol in dict.fromkeys(r["protocol"] for r in rows)]
    both = comparison(rows)
    return [*tables, both] if both else tables


def _table(protocol: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    titles = {t.name: t.title for t in ALL_TASKS}
    own = [r for r in rows if r["protocol"] == protocol]
    encoders = list(dict.fromkeys(r["encoder"] for r in own))
    cells = {(r["task"], r["encoder"]): r for r in own}
    lines = []
    for name in dict.fromkeys(r["task"] for r in own):
        of_task = [cells.get((name, e)) for e in encoders]
        there = [r for r in of_task if r]
        best = max(r["value"] for r in there)
        title = f"{titles.get(name, name)} ({METRICS[there[0]['metric']].title})"
        lines.append((Cell(title), *(_cell(r, best) if r else ABSENT for r in of_task)))
    return Table(f"Protocol {protocol}", ("task", *encoders), (Group("", tuple(lines)),), (f"{EXPLAINED[protocol]}.",))


def _cell(row: Mapping[str, Any], best: float) -> Cell:
    low, high = row["interval"]
    return Cell(f"{row['value']:.3f}", f"[{low:.3f}, {high:.3f}]", strong=row["value"] == best)
