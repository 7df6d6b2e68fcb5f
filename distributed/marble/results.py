"""From outcomes to rows, and from rows to a table in Markdown and HTML.

Legend: R resamples, N test items.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distributed.marble.intervals import interval, resample_weights
from distributed.marble.marble_tasks import ALL_TASKS
from distributed.marble.metrics import METRICS, Statistics
from distributed.marble.probing import Outcome
from distributed.marble.protocols import comparison
from distributed.marble.tasks import Protocol, Task
from distributed.run_directory import write_atomically

RESULTS, TABLE_MARKDOWN, TABLE_HTML = "results.jsonl", "results.md", "results.html"

Row = dict[str, Any]


@dataclass(frozen=True)
class Sampling:
    """The bootstrap's size and seed."""

    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Provenance:
    """What a row says about where its features came from.

    Attributes:
        layer_names: of the layers that the task probed.
        layers: their numbers among all layers of the encoder.
        digests: checkpoint, corpus, features.
    """

    layer_names: tuple[str, ...]
    layers: tuple[int, ...]
    digests: Mapping[str, str]


def make_rows(
    task: Task,
    outcomes: Sequence[Outcome],
    provenance: Mapping[str, Provenance],
    *,
    protocol: Protocol,
    baselines: Sequence[str],
    sampling: Sampling,
) -> list[Row]:
    """Returns one row per encoder of a task; differences to the baselines are paired over the same resamples."""
    weights_RN = resample_weights(outcomes[0].units, resamples=sampling.resamples, seed=sampling.seed)
    values = {o.encoder: _value(task.metric, o.statistics[task.metric], weights_RN) for o in outcomes}
    rows = []
    for outcome in outcomes:
        value, values_R = values[outcome.encoder]
        rows.append(
            {
                "task": task.name,
                "encoder": outcome.encoder,
                "protocol": protocol,
                "metric": task.metric,
                "value": value,
                "interval": list(interval(values_R)),
                **_choice_fields(task, outcome, provenance[outcome.encoder], sampling),
                "extra": _extra(task, outcome, weights_RN, provenance[outcome.encoder]),
                "difference_to": {
                    b: _difference(values[outcome.encoder], values[b])
                    for b in baselines
                    if b in values and b != outcome.encoder
                },
            }
        )
    return rows


def write_results(folder: Path, rows: Sequence[Row]) -> list[Row]:
    """Writes results.jsonl, results.md and results.html, and returns all rows now in them.

    Rows of earlier evaluations of the same corpus stay (another protocol, other encoders, tasks on another list) unless
    they are measured anew; rows of another corpus go, because a table must not mix test sets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = {_place(r) for r in rows}
    lists = {t.name: t.list_name for t in ALL_TASKS}
    corpora = {(lists.get(r["task"]), r["digests"]["corpus"]) for r in rows}
    measured = {name for name, _ in corpora}

    def stays(row: Row) -> bool:
        of_list = lists.get(row["task"])
        return of_list not in measured or (of_list, row["digests"]["corpus"]) in corpora

    kept = [r for r in read_results(folder) if _place(r) not in place and stays(r)]
    order = {task.name: i for i, task in enumerate(ALL_TASKS)}
    merged = sorted([*kept, *rows], key=lambda r: (r["protocol"], order.get(r["task"], len(order))))
    write_atomically(folder / RESULTS, "".join(json.dumps(r) + "\n" for r in merged))
    write_atomically(folder / TABLE_MARKDOWN, markdown_table(merged))
    write_atomically(folder / TABLE_HTML, html_table(merged))
    return merged


def read_results(folder: Path) -> list[Row]:
    """Returns the rows of a folder; none when it has no results yet."""
    path = folder / RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def markdown_table(rows: Sequence[Row]) -> str:
    """Returns one table per protocol: tasks down, encoders across, value and 95 % interval in each cell.

    Tasks that were measured under both protocols follow side by side, with what differs.
    """
    lines = []
    for protocol, encoders, tasks in _layout(rows):
        lines += [f"Protocol {protocol}: {_explain(protocol)}", ""]
        lines += ["| task | " + " | ".join(encoders) + " |", "|---|" + "---|" * len(encoders)]
        for title, cells in tasks:
            texts = [_text(c, best=_best(cells)) if c else "-" for c in cells]
            lines.append(f"| {title} | " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join(lines) + comparison(rows)


def html_table(rows: Sequence[Row]) -> str:
    """Returns the same tables as an HTML fragment without styles."""
    parts = []
    for protocol, encoders, tasks in _layout(rows):
        head = "".join(f"<th>{html.escape(e)}</th>" for e in encoders)
        body = []
        for title, cells in tasks:
            texts = "".join(f"<td>{_cell(c, best=_best(cells)) if c else '-'}</td>" for c in cells)
            body.append(f"<tr><th>{html.escape(title)}</th>{texts}</tr>")
        caption = f"Protocol {protocol}: {_explain(protocol)}"
        parts.append(
            f'<table class="probes"><caption>{caption}</caption><thead><tr><th>task</th>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table>"
        )
    return "\n".join(parts) + "\n"


def _value(name: str, seeds: Sequence[Statistics], weights_RN: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the metric and its resampled values, both means over seeds."""
    metric = METRICS[name]
    exact = float(np.mean([metric.exact(s) for s in seeds]))
    return exact, np.mean([metric.resampled(s, weights_RN) for s in seeds], axis=0)


def _difference(own: tuple[float, np.ndarray], other: tuple[float, np.ndarray]) -> dict[str, Any]:
    return {"value": own[0] - other[0], "interval": list(interval(own[1] - other[1]))}


def _choice_fields(task: Task, outcome: Outcome, provenance: Provenance, sampling: Sampling) -> Row:
    choice = outcome.choice
    weights_RN = resample_weights(outcome.validation_units, resamples=sampling.resamples, seed=sampling.seed)
    _, validation_R = _value(task.selection, outcome.validation, weights_RN)
    return {
        "layer": provenance.layers[choice.layer],
        "learning_rate": task.fit.learning_rates[choice.rate],
        "seeds": list(task.fit.seeds),
        "test_items": len(outcome.units),
        "selection": {
            "split": "valid",
            "metric": task.selection,
            "value": choice.score,
            "interval": list(interval(validation_R)),
            "items": len(outcome.validation_units),
        },
        "digests": dict(provenance.digests),
    }


def _extra(task: Task, outcome: Outcome, weights_RN: np.ndarray, provenance: Provenance) -> dict[str, Any]:
    extra: dict[str, Any] = {
        "head": task.fit.head,
        "follows": task.follows,
        "width": outcome.width,
        "train_items": outcome.train_items,
        "test_units": len(set(outcome.units)),
        "classes": len(outcome.classes),
        "layer_name": provenance.layer_names[outcome.choice.layer],
        "layers": list(provenance.layers),
        "layer_profile": list(outcome.choice.layer_profile),
        "kept_epochs": list(outcome.choice.kept_epochs),
        "epochs": outcome.choice.epochs,
    }
    if task.target == "regression":
        extra["outputs"] = list(outcome.classes)
    for name in task.extra_metrics:
        value, values_R = _value(name, outcome.statistics[name], weights_RN)
        extra[name] = {"value": value, "interval": list(interval(values_R))}
    return extra


def _place(row: Row) -> tuple[str, str, str]:
    return row["task"], row["encoder"], row["protocol"]


def _layout(rows: Sequence[Row]) -> list[tuple[str, list[str], list[tuple[str, list[Row | None]]]]]:
    tables = []
    titles = {t.name: t.title for t in ALL_TASKS}
    for protocol in dict.fromkeys(r["protocol"] for r in rows):
        own = [r for r in rows if r["protocol"] == protocol]
        encoders = list(dict.fromkeys(r["encoder"] for r in own))
        cells = {(r["task"], r["encoder"]): r for r in own}
        tasks = []
        for name in dict.fromkeys(r["task"] for r in own):
            of_task = [cells.get((name, e)) for e in encoders]
            measure = METRICS[next(r["metric"] for r in of_task if r)].title
            tasks.append((f"{titles.get(name, name)} ({measure})", of_task))
        tables.append((protocol, encoders, tasks))
    return tables


def _explain(protocol: str) -> str:
    return {
        "clean": "best epoch on validation, exact metrics, standardised features; layer and learning rate chosen on "
        "validation; 95 % intervals over pieces.",
        "marble": "last epoch, monitors as MARBLE v2 logs them, raw features; layer and learning rate chosen on "
        "validation; 95 % intervals over pieces.",
    }[protocol]


def _best(cells: Sequence[Row | None]) -> float:
    return max(c["value"] for c in cells if c)


def _numbers(cell: Row) -> tuple[str, str]:
    low, high = cell["interval"]
    return f"{cell['value']:.3f}", f"[{low:.3f}, {high:.3f}]"


def _text(cell: Row, *, best: float) -> str:
    value, bounds = _numbers(cell)
    return f"**{value}** {bounds}" if cell["value"] == best else f"{value} {bounds}"


def _cell(cell: Row, *, best: float) -> str:
    value, bounds = _numbers(cell)
    shown = f"<strong>{value}</strong>" if cell["value"] == best else value
    return f"{shown} <small>{bounds}</small>"
