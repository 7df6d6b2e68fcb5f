"""The probe table: scores of probes on the frozen features, beside baselines.

The baselines are the untrained network of the same shape and plain audio statistics. Each row also has the paired
difference over the same test items with its interval.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distributed.drawing.forest import Difference, forest_column, forest_plot
from distributed.drawing.tables import ABSENT, Cell, Group, Table
from distributed.drawing.wording import MINUS, count_of, fixed, interval, listed, scientific
from distributed.marble.results.tables import (
    BASELINES,
    encoder_label,
    layer_profiles,
    metric_title,
    ordered_encoders,
    score_cell,
)
from distributed.marble.tasks.marble_tasks import task_title
from distributed.marble.tasks.tasks import READOUT_TITLES
from distributed.report.inputs import Missing, Row, RunInputs

REFERENCE = "random_init"


def probe_section(run: RunInputs) -> dict[str, Any] | Missing:
    """Returns a table and forest plots for each protocol of the results, layer profiles, and digests."""
    if not run.results:
        return Missing(
            "results.jsonl, the scores of the probes",
            f"python -m distributed evaluate --encoders {run.location} random_init log_mel chroma "
            f"--data corpora/scores --out {run.location}",
        )
    by_protocol: dict[str, list[Row]] = {}
    digests: dict[str, str] = {}
    for row in run.results:
        by_protocol.setdefault(str(row.get("protocol", "")), []).append(row)
        for name, digest in (row.get("digests") or {}).items():
            digests.setdefault(f"{row['encoder']} {name}" if name == "checkpoint" else name, str(digest))
    tables = [probe_table(rows, protocol) for protocol, rows in sorted(by_protocol.items())]
    return {"tables": tables, "profiles": layer_profiles(run.results), "digests": list(digests.items())}


def probe_table(rows: Sequence[Row], protocol: str) -> dict[str, Any]:
    """Returns the table of one protocol, and a forest plot of the differences to each baseline.

    The table has a row per task, a column per encoder, then the difference.
    """
    encoders = ordered_encoders(rows)
    by_place = {(r["task"], r["encoder"]): r for r in rows}
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    trained = next((e for e in encoders if e not in BASELINES), None)  # of several, the first
    own_rows = [by_place.get((t, trained)) for t in tasks]
    gains = [difference_to(row, REFERENCE) for row in own_rows]
    scale, drawn, zero = forest_column("Difference drawn", gains)
    columns = [
        Cell(BASELINES[name].label, BASELINES[name].explanation, look=f"encoder {BASELINES[name].tone}")
        if name in BASELINES
        else Cell(encoder_label(name), "frozen teacher of this run", look="encoder tone-1")
        for name in encoders
    ]
    head = (Cell("Task"), *columns, Cell(f"Trained {MINUS} random init"), scale)
    lines = []
    for task, gain, drawing in zip(tasks, gains, drawn, strict=True):
        cell = ABSENT
        if gain:
            bounds, text = interval(gain.lo, gain.hi), fixed(gain.value, sign=True)
            cell = Cell(text, bounds, strong=gain.exceeds, value=gain.value, look="gain")
        lines.append((*_scores([by_place.get((task, e)) for e in encoders]), cell, drawing))
    groups = (Group("", tuple(lines)),)
    table = Table(f"Probe table, protocol {protocol}", head, groups, tuple(probe_notes(gains)), zero)
    found = {b.label: [d for r in own_rows if (d := difference_to(r, name))] for name, b in BASELINES.items()}
    scale_of = [d for differences in found.values() for d in differences]  # one scale, so that plots compare
    forests = [
        (label, forest_plot(differences, title=f"Trained minus {label}, 95 % intervals", scale_of=scale_of))
        for label, differences in found.items()
        if differences
    ]
    return {"protocol": protocol, "table": table, "forests": forests}


def difference_to(row: Row | None, baseline: str) -> Difference | None:
    """Returns the evaluator's paired difference of a row to a baseline; None without one."""
    entry = ((row or {}).get("difference_to") or {}).get(baseline)
    if row is None or not entry:
        return None
    return Difference(task_title(row["task"]), entry["value"], *entry["interval"])


def probe_notes(gains: Sequence[Difference | None]) -> list[str]:
    """Returns sentences on the tasks that gained, those that did not, and those that lost."""
    known = [d for d in gains if d is not None]
    if not known:
        return ["The results hold no paired difference to the untrained network, so no gain can be claimed."]
    gained = sorted((d for d in known if d.exceeds), key=lambda d: -d.value)
    lost = [d for d in known if d.value < -d.half_width]  # beyond doubt, as a gain must be
    level = [d for d in known if not d.exceeds and d not in lost]
    if gained:
        parts = [f"{d.label.lower()} {d.words}" for d in gained]
        sentences = [
            f"Training helped on {len(gained)} of {count_of(len(known), 'task')} by more than the interval's "
            f"half-width: {listed(parts)}."
        ]
    else:
        sentences = ["On no task does training help by more than the interval's half-width."]
    for claim, rest in (
        ("No difference that these test items could show", level),
        ("Worse than the untrained network", lost),
    ):
        if rest:
            sentences.append(f"{claim}: {listed([f'{d.label.lower()} ({d.words})' for d in rest])}.")
    return sentences


def _scores(rows: Sequence[Row | None]) -> list[Cell]:
    """Returns the cells of a task: its name with its test items, then its scores."""
    known = [r for r in rows if r is not None]
    first, best = known[0], max(r["value"] for r in known)
    items = f"{count_of(first['test_items'], 'test item')} of {count_of(first['extra']['test_units'], 'piece')}"
    name = Cell(task_title(first["task"]), f"{metric_title(first['metric'])}, {items}")
    cells = [name]
    for row in rows:
        if row is None:
            cells.append(ABSENT)
            continue
        layer = READOUT_TITLES.get(row["layer"], f"layer {row['layer']}")
        chosen = f"{layer}, lr {scientific(row['learning_rate'], 0)}"
        cells.append(replace(score_cell(row, best), detail=chosen))
    return cells
