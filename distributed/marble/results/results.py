"""Rows of results.jsonl from outcomes, and the folder that keeps them.

The folder also has the resampled values of the metrics. They give paired differences between any two encoders, even of
separate evaluations: equal units and seed give equal resamples.

Legend: R resamples, N test items, M metrics of a task.
"""

import json
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from distributed.drawing.tables import Drawings, to_markdown, to_page
from distributed.marble.metrics.metrics import METRICS, Statistics
from distributed.marble.metrics.statistics import central_interval, resample_weights
from distributed.marble.probes.probing import ProbeJob, ProbeOutcome
from distributed.marble.results.tables import BASELINES, layer_profiles, result_tables
from distributed.marble.tasks.marble_tasks import ALL_TASKS
from distributed.marble.tasks.tasks import Protocol
from distributed.run.directory import write_atomically
from pupujepa.durable import atomic_file
from pupujepa.errors import require_readable
from pupujepa.json_lines import read_rows, write_rows
from pupujepa.locks import only_writer

RESULTS, RESAMPLES = "results.jsonl", "resamples.safetensors"
TABLE_MARKDOWN, TABLE_HTML = "results.md", "results.html"
_LOCK_NAME = ".results.lock"
# another evaluation merges its rows within seconds
_PATIENCE_S = 600.0

Row = dict[str, Any]
# [M, R] by digest; a row has its digest in bootstrap.values
Resamples = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sampling:
    """Size and seed of the bootstrap."""

    resamples: int = 1000
    seed: int = 0


def make_rows(
    jobs: Sequence[ProbeJob], outcomes: Sequence[ProbeOutcome], *, protocol: Protocol, sampling: Sampling
) -> tuple[list[Row], Resamples]:
    """Returns a row for each job of one task and its outcome, and their resampled values by digest."""
    task, splits = jobs[0].data.task, jobs[0].data.splits
    names, units = (task.metric, *task.extra_metrics), splits["test"].units
    weights = {
        name: resample_weights(splits[name].units, resamples=sampling.resamples, seed=sampling.seed)
        for name in ("valid", "test")
    }
    drawn = {"resamples": sampling.resamples, "seed": sampling.seed, "units": _digest(json.dumps(units).encode())}
    values = {
        job.encoder: {n: _value(n, outcome.statistics[n], weights["test"]) for n in names}
        for job, outcome in zip(jobs, outcomes, strict=True)
    }
    rows: list[Row] = []
    resamples: Resamples = {}
    for job, outcome in zip(jobs, outcomes, strict=True):
        own = values[job.encoder]
        values_MR = np.stack([own[n][1:] for n in names])
        digest = _digest(values_MR.tobytes())  # equal values are stored once
        resamples[digest] = values_MR
        validation = _value(task.metric, outcome.validation, weights["valid"])
        # all encoders have the same resamples, so the differences are paired
        others = [b for b in BASELINES if b in values and b != job.encoder]
        rows.append(
            {
                "task": task.name,
                "encoder": job.encoder,
                "protocol": protocol,
                "metric": task.metric,
                **_with_interval(own[task.metric]),
                "layer": job.layers[outcome.choice.layer],
                "learning_rate": task.fit.learning_rates[outcome.choice.rate],
                "seeds": list(task.fit.seeds),
                "test_items": len(units),
                "selection": {
                    "split": "valid",
                    "metric": task.metric,
                    **_with_interval(validation),
                    "value": outcome.choice.score,
                    "items": len(splits["valid"].units),
                },
                "digests": dict(job.digests),
                "bootstrap": {**drawn, "metrics": list(names), "values": digest},
                "extra": _extra(job, outcome) | {n: _with_interval(own[n]) for n in task.extra_metrics},
                "difference_to": {b: _with_interval(own[task.metric] - values[b][task.metric]) for b in others},
            }
        )
    return rows, resamples


def write_results(folder: Path, rows: Sequence[Row], resamples: Resamples) -> list[Row]:
    """Writes the results and returns all rows, old and new.

    The files are results.jsonl, resamples.safetensors, results.md and results.html. Evaluations into one folder take
    turns.
    """
    with only_evaluation(folder):
        return _write_merged(folder, rows, resamples)


def only_evaluation(folder: Path) -> AbstractContextManager[None]:
    """Reserves the results of a folder, which may also hold a training; waits for its turn."""
    return only_writer(folder, wait_s=_PATIENCE_S, name=_LOCK_NAME)


def _write_merged(folder: Path, rows: Sequence[Row], resamples: Resamples) -> list[Row]:
    merged = merged_rows(folder / RESULTS, rows, lambda r: (r["task"], r["encoder"], r["protocol"]))
    all_resamples = read_resamples(folder) | resamples
    # keep only resamples of rows that stay, or the file would grow with every evaluation
    named = {r["bootstrap"]["values"] for r in merged if "bootstrap" in r}
    with atomic_file(folder / RESAMPLES) as temporary:
        save_file({name: all_resamples[name] for name in sorted(named & set(all_resamples))}, temporary)
    write_rows(folder / RESULTS, merged)
    tables = result_tables(merged)
    charts = {
        p: layer_profiles([r for r in merged if r["protocol"] == p])
        for p in dict.fromkeys(r["protocol"] for r in merged)
    }
    drawings = [Drawings(f"Layers, protocol {protocol}", drawn) for protocol, drawn in charts.items() if drawn]
    write_atomically(folder / TABLE_MARKDOWN, to_markdown(tables))
    write_atomically(folder / TABLE_HTML, to_page(tables, title="Probe scores", drawings=drawings))
    return merged


def merged_rows(path: Path, rows: Sequence[Row], place: Callable[[Row], Hashable]) -> list[Row]:
    """Returns the rows of a file and new ones, in the order of tasks.

    New rows replace old rows of the same `place`. Other old rows stay if they have the same corpus or another track
    list; rows of another corpus are dropped, because a table must not mix test sets.
    """
    new = {place(r) for r in rows}
    lists = {t.name: t.list_name for t in ALL_TASKS}
    corpora = {(lists.get(r["task"]), r["digests"]["corpus"]) for r in rows}
    measured = {name for name, _ in corpora}

    def stays(row: Row) -> bool:
        of_list = lists.get(row["task"])
        same_corpus = of_list not in measured or (of_list, row["digests"]["corpus"]) in corpora
        return same_corpus and place(row) not in new  # new rows replace old ones

    order = {task.name: i for i, task in enumerate(ALL_TASKS)}
    every = [*filter(stays, read_rows(path)), *rows]
    return sorted(every, key=lambda r: (r["protocol"], order.get(r["task"], len(order))))


def read_results(folder: Path) -> list[Row]:
    """Returns the rows of a folder; [] without results."""
    return read_rows(folder / RESULTS)


def read_resamples(folder: Path) -> Resamples:
    """Returns the resampled values of a folder by digest; {} without any."""
    path = folder / RESAMPLES
    if not path.is_file():
        return {}
    require_readable(path)
    return load_file(path)


def _value(name: str, seeds: Sequence[Statistics], weights_RN: np.ndarray) -> np.ndarray:
    """Returns the metric, then its resampled values, [1 + R], all averaged over seeds."""
    metric = METRICS[name]
    return np.mean([[metric.exact(s), *metric.resampled(s, weights_RN)] for s in seeds], axis=0)


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:16]


def _with_interval(values: np.ndarray) -> Row:
    return {"value": float(values[0]), "interval": list(central_interval(values[1:]))}


def _extra(job: ProbeJob, outcome: ProbeOutcome) -> Row:
    task, choice = job.data.task, outcome.choice
    return {
        "head": task.fit.head,
        "follows": task.follows or task.name,
        "width": outcome.width,
        "train_items": len(job.data.splits["train"].units),
        "test_units": len(set(job.data.splits["test"].units)),
        "classes": len(job.data.space.classes),
        "layer_name": job.layer_names[choice.layer],
        "layers": list(job.layers),
        "layer_profile": list(choice.layer_profile),
        "learning_rates": list(task.fit.learning_rates),
        "kept_epochs": list(choice.kept_epochs),
        "epochs": choice.epochs,
        **({"outputs": list(job.data.space.classes)} if task.target == "regression" else {}),
    }
