"""Rows of results.jsonl from outcomes, and the folder that keeps them.

The folder also has the resampled values of the metrics. They give paired differences between any two encoders, even of
separate evaluations: equal units and seed give equal resamples.

Legend: R resamples, N test items, M metrics of a task.
"""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from distributed.drawing.tables import Drawings, to_markdown, to_page
from distributed.marble.metrics.metrics import METRICS, Statistics
from distributed.marble.metrics.resampling import central_interval, resample_weights
from distributed.marble.probes.probing import ProbeOutcome
from distributed.marble.results.layer_profiles import layer_profiles
from distributed.marble.results.tables import result_tables
from distributed.marble.tasks.marble_tasks import ALL_TASKS
from distributed.marble.tasks.tasks import Protocol, Task
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


@dataclass(frozen=True)
class Provenance:
    """Origin of a row's features.

    Attributes:
        layer_names: names of the layers that the task probed, then of the readouts of all layers.
        layers: layer numbers within the encoder, then the readouts.
        digests: of checkpoint, corpus and features.
    """

    layer_names: tuple[str, ...]
    layers: tuple[int | str, ...]
    digests: Mapping[str, str]


def make_rows(
    task: Task,
    outcomes: Sequence[ProbeOutcome],
    provenance: Mapping[str, Provenance],
    *,
    protocol: Protocol,
    baselines: Sequence[str],
    sampling: Sampling,
) -> tuple[list[Row], Resamples]:
    """Returns one row per encoder of a task, and their resampled values by digest.

    Differences to the baselines are paired over the same resamples.
    """
    units = outcomes[0].units
    weights_RN = resample_weights(units, resamples=sampling.resamples, seed=sampling.seed)
    names = (task.metric, *task.extra_metrics)
    values = {o.encoder: {n: _value(n, o.statistics[n], weights_RN) for n in names} for o in outcomes}
    drawn = {"resamples": sampling.resamples, "seed": sampling.seed, "units": _digest(json.dumps(units).encode())}
    rows: list[Row] = []
    resamples: Resamples = {}
    for outcome in outcomes:
        own = values[outcome.encoder]
        values_MR = np.stack([own[n][1] for n in names])
        digest = _digest(values_MR.tobytes())  # equal values are stored once
        resamples[digest] = values_MR
        rows.append(
            {
                "task": task.name,
                "encoder": outcome.encoder,
                "protocol": protocol,
                "metric": task.metric,
                **_with_interval(*own[task.metric]),
                **_choice_fields(task, outcome, provenance[outcome.encoder], sampling),
                "bootstrap": {**drawn, "metrics": list(names), "values": digest},
                "extra": _extra(task, outcome, own, provenance[outcome.encoder]),
                "difference_to": {
                    b: _difference(own[task.metric], values[b][task.metric])
                    for b in baselines
                    if b in values and b != outcome.encoder
                },
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
    write_atomically(folder / TABLE_MARKDOWN, to_markdown(tables))
    write_atomically(folder / TABLE_HTML, to_page(tables, title="Probe scores", drawings=_profiles(merged)))
    return merged


def merged_rows(path: Path, rows: Sequence[Row], place: Callable[[Row], Hashable]) -> list[Row]:
    """Returns the rows of a file and new ones, in the order of tasks.

    New rows replace old rows of the same `place`. Other old rows stay if they have the same corpus or another track
    list; rows of another corpus are dropped, because a table must not mix test sets.

    Args:
        place: key of a row.
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


def _profiles(rows: Sequence[Row]) -> list[Drawings]:
    """Returns the charts of layer scores, per protocol."""
    drawn = {
        p: layer_profiles([r for r in rows if r["protocol"] == p]) for p in dict.fromkeys(r["protocol"] for r in rows)
    }
    return [Drawings(f"Layers, protocol {protocol}", charts) for protocol, charts in drawn.items() if charts]


def _value(name: str, seeds: Sequence[Statistics], weights_RN: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the metric and its resampled values [R], both averaged over seeds."""
    metric = METRICS[name]
    exact = float(np.mean([metric.exact(s) for s in seeds]))
    return exact, np.mean([metric.resampled(s, weights_RN) for s in seeds], axis=0)


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:16]


def _with_interval(value: float, values_R: np.ndarray) -> Row:
    return {"value": value, "interval": list(central_interval(values_R))}


def _difference(own: tuple[float, np.ndarray], other: tuple[float, np.ndarray]) -> Row:
    return _with_interval(own[0] - other[0], own[1] - other[1])


def _choice_fields(task: Task, outcome: ProbeOutcome, provenance: Provenance, sampling: Sampling) -> Row:
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
            "interval": list(central_interval(validation_R)),
            "items": len(outcome.validation_units),
        },
        "digests": dict(provenance.digests),
    }


def _extra(
    task: Task, outcome: ProbeOutcome, values: Mapping[str, tuple[float, np.ndarray]], provenance: Provenance
) -> dict[str, Any]:
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
        "learning_rates": list(task.fit.learning_rates),
        "kept_epochs": list(outcome.choice.kept_epochs),
        "epochs": outcome.choice.epochs,
    }
    if task.target == "regression":
        extra["outputs"] = list(outcome.classes)
    for name in task.extra_metrics:
        extra[name] = _with_interval(*values[name])
    return extra
