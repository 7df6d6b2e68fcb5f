"""Leaderboard of many results and of published numbers: encoders down, tasks across.

Global tasks (one output a slice), local tasks (one a frame) and the offline tasks, without published numbers, have
separate tables. Rows of a group are comparable: each protocol is a group, and so are the published numbers. A mark
shows scores that are not comparable for another reason.

Differences are paired: of two rows with the same task, protocol, metric, corpus, units and seed, every resample drew
the same items equally often. Otherwise the table names the difference instead of a number.

Legend: R resamples, M metrics of a task.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distributed.drawing.tables import ABSENT, Cell, Group, Table, texts
from distributed.drawing.wording import EN_DASH, fixed, interval
from distributed.marble.metrics.metrics import METRICS
from distributed.marble.metrics.statistics import central_interval
from distributed.marble.results.published import MARBLE_COLUMNS, Column, caveats, published_models
from distributed.marble.results.results import RESULTS, Row, read_resamples, read_results
from distributed.marble.tasks.marble_tasks import ALL_TASKS
from distributed.marble.tasks.tasks import TASKS
from pupujepa.errors import UserError

_OFFLINE_COLUMNS = tuple(Column(t.name, t.title, (t.metric,)) for t in TASKS)
_LOCAL = frozenset(t.name for t in ALL_TASKS if t.by_frame)
_ABOUT = ("encoder", "protocol", "layer", "learning rate", "source")
OTHER_DATA = "†"
PAIRED_NOTE = (
    "Paired bootstrap: both encoders are scored on the same resampled items (the unit is the piece or the file, never "
    "the slice). Bold: the 95 % interval excludes zero; one such difference in twenty does so by chance."
)
_HEADINGS = {
    "marble": "Measured here under protocol marble, MARBLE's own and the nearest to the published numbers; "
    "most of their authors do not say how they chose layers and learning rates.",
    "clean": "Measured here under protocol clean: other stopping, metrics and learning rates, so not comparable "
    "with the published numbers or with protocol marble.",
    "published": "Published, not measured here; no intervals are known.",
}


@dataclass(frozen=True)
class PairedEntry:
    """A row of results with its resampled values."""

    label: str  # the encoder's name, with its folder if two encoders have that name
    row: Row
    values_MR: np.ndarray | None  # values of the metrics in the row's bootstrap; None if an older evaluation kept none

    def scored(self, metric: str) -> Row:
        """Returns the `value` and `interval` of one of the row's metrics."""
        return self.row if metric == self.row["metric"] else self.row["extra"][metric]


# by protocol and label, the entry of each task
ByProtocol = dict[str, dict[str, dict[str, PairedEntry]]]


@dataclass(frozen=True)
class BoardPart:
    """Tasks of a table, MARBLE's or offline, global or local, with the results of these tasks."""

    title: str
    columns: tuple[Column, ...]
    with_published: bool
    entries: tuple[PairedEntry, ...]

    @property
    def by_protocol(self) -> ByProtocol:
        """The entries of protocol marble, then those of clean."""
        found: ByProtocol = {"marble": {}, "clean": {}}
        for entry in self.entries:
            found[entry.row["protocol"]].setdefault(entry.label, {})[entry.row["task"]] = entry
        return {protocol: of_label for protocol, of_label in found.items() if of_label}


def leaderboard(entries: Sequence[PairedEntry], *, reference: str | None) -> list[Table]:
    """Returns tables of scores, differences to a reference (None: without), and choices, for each part."""
    tables = []
    for part in _parts(entries):
        tables.append(_scores(part))
        if reference and (differences := _differences(part, reference)):
            tables.append(differences)
        tables.append(_choices(part))
    return tables


def _parts(entries: Sequence[PairedEntry]) -> list[BoardPart]:
    parts = []
    for name, columns, published in (("MARBLE", MARBLE_COLUMNS, True), ("Offline", _OFFLINE_COLUMNS, False)):
        for kind in ("global", "local"):
            tasks = {c.task for c in columns if (c.task in _LOCAL) == (kind == "local")}
            own = tuple(e for e in entries if e.row["task"] in tasks)
            measured = {e.row["task"] for e in own}
            if own:
                shown = tuple(c for c in columns if c.task in measured)
                parts.append(BoardPart(f"{name}, {kind} tasks", shown, published, own))
    return parts


def _scores(part: BoardPart) -> Table:
    groups = {}
    for protocol, encoders in part.by_protocol.items():
        there = {c: [own[c.task] for own in encoders.values() if c.task in own] for c in part.columns}
        best = {c: max((e.scored(_metric(e, c))["value"] for e in own), default=math.nan) for c, own in there.items()}
        rows = [
            (*_about(list(own.values())), *(_value(own.get(c.task), c, best[c], part) for c in part.columns))
            for own in encoders.values()
        ]
        groups[protocol] = Group(_HEADINGS[protocol] if part.with_published else f"Protocol {protocol}", tuple(rows))
    notes = list(_reading(part))
    if part.with_published:
        groups["published"] = Group(_HEADINGS["published"], tuple(_published_rows(part.columns)))
        notes += _data_notes(part.entries)
    else:
        notes.append("These tasks follow MARBLE's in kind, not in data: there are no published numbers for them.")
    ordered = tuple(groups[name] for name in ("marble", "published", "clean") if name in groups)
    return Table(part.title, texts(*_ABOUT, *(c.title for c in part.columns)), ordered, tuple(notes))


def _about(entries: Sequence[PairedEntry]) -> tuple[Cell, ...]:
    """Returns the first cells of a row: encoder, protocol, choice of layer and learning rate, source."""
    first = entries[0].row
    probed = [e.row["extra"].get("layers", ()) for e in entries]
    layers = sorted({sum(isinstance(i, int) for i in p) for p in probed})
    together = sorted({sum(isinstance(i, str) for i in p) for p in probed})
    rates = {tuple(e.row["extra"].get("learning_rates", (e.row["learning_rate"],))) for e in entries}
    # tasks of one row may differ in layers and rates: show ranges
    tried = sorted({len(r) for r in rates})
    fixed_rates = sorted({r[0] for r in rates if len(r) == 1})
    rate = ", ".join(f"{r:g}" for r in fixed_rates) if tried == [1] else f"best of {_range(tried)}"
    layer = "the only one" if layers == [1] else f"best of {_range(layers)}"
    if together[-1]:
        layer += f" and {_range(together)} of all"
    return texts(entries[0].label, first["protocol"], layer, f"lr {rate}", "measured here")


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}{EN_DASH}{counts[-1]}"


def _metric(entry: PairedEntry, column: Column) -> str:
    """Returns the metric of a column that a row has; the row's main metric first."""
    names = (entry.row["metric"], *(n for n in column.metrics if n in entry.row["extra"]))
    return next(n for n in names if n in column.metrics)


def _value(entry: PairedEntry | None, column: Column, best: float, part: BoardPart) -> Cell:
    if entry is None:
        return ABSENT
    found = entry.scored(_metric(entry, column))
    low, high = found["interval"]
    other = part.with_published and any(c.startswith("other") for c in caveats(entry.row))
    bounds, mark = interval(100 * low, 100 * high, 1), OTHER_DATA if other else ""
    return Cell(fixed(100 * found["value"], 1), bounds, strong=found["value"] == best, mark=mark)


def _published_rows(columns: Sequence[Column]) -> Iterator[tuple[Cell, ...]]:
    for model in published_models():
        if any(c.published in model.scores for c in columns):
            name = f"{model.name} ({model.parameters_m} M)"
            about = texts(name, "as published", model.layer_policy, model.rate_policy, model.source)
            yield (*about, *(Cell(model.scores.get(c.published, ABSENT.text)) for c in columns))


def _differences(part: BoardPart, reference: str) -> Table | None:
    groups = []
    for protocol, encoders in part.by_protocol.items():
        others = encoders.pop(reference, {})  # no row for the reference itself
        rows = []
        for label, own in encoders.items():
            found = [
                difference_cell(own[c.task], others[c.task], _metric(own[c.task], c))
                if c.task in own and c.task in others
                else ABSENT
                for c in part.columns
            ]
            if any(c is not ABSENT for c in found):
                rows.append((*texts(label, protocol), *found))
        if rows:
            groups.append(Group("", tuple(rows)))
    head = texts("encoder", "protocol", *(c.title for c in part.columns))
    title = f"{part.title}: differences to {reference}, in points"
    return Table(title, head, tuple(groups), (PAIRED_NOTE,)) if groups else None


def difference_cell(entry: PairedEntry, reference: PairedEntry, metric: str) -> Cell:
    """Returns a difference in points with its interval, strong if that excludes 0, or why there is none."""
    found = paired_difference(entry, reference, metric)
    if isinstance(found, str):
        return Cell(ABSENT.text, found)
    value, low, high = found
    text, bounds = fixed(100 * value, 1, sign=True), interval(100 * low, 100 * high, 1)
    return Cell(text, bounds, strong=low > 0 or high < 0)


def _choices(part: BoardPart) -> Table:
    tasks = list(dict.fromkeys(c.task for c in part.columns))
    rows = [
        (*texts(label, protocol), *(_choice(own.get(t)) for t in tasks))
        for protocol, encoders in part.by_protocol.items()
        for label, own in encoders.items()
    ]
    head = texts("encoder", "protocol", *tasks)
    return Table(f"{part.title}: what was chosen on validation", head, (Group("", tuple(rows)),))


def _choice(entry: PairedEntry | None) -> Cell:
    if entry is None:
        return ABSENT
    row = entry.row
    head = row["extra"].get("head", "")
    return Cell(str(row["extra"].get("layer_name", row["layer"])), f"lr {row['learning_rate']:g} {head}".rstrip())


def _reading(part: BoardPart) -> tuple[str, str]:
    names = dict.fromkeys(_metric(e, c) for c in part.columns for e in part.entries if e.row["task"] == c.task)
    titles = "; ".join(METRICS[n].title for n in names if n in METRICS)
    seeds = sorted({len(e.row["seeds"]) for e in part.entries})
    mean = f"Mean of {_range(seeds)} seeds." if seeds != [1] else "One seed."
    return (
        f"All values times 100, larger is better, 95 % intervals below them. Metrics: {titles}.",
        "Layer and learning rate: 'best of N' was chosen on the validation split, task by task ('of all': one probe on "
        "all layers together); the test split was read once, by the choice alone. "
        f"{mean} A bold value is the best of its group.",
    )


def _data_notes(entries: Sequence[PairedEntry]) -> list[str]:
    told = dict.fromkeys(
        f"{OTHER_DATA} {e.row['task']}, protocol {e.row['protocol']}: {reason}; not comparable with published numbers."
        for e in entries
        for reason in caveats(e.row)
        if reason.startswith(("other", "another"))
    )
    return list(told)


def read_entries(folders: Sequence[Path]) -> list[PairedEntry]:
    """Returns the rows of several results folders, without duplicates.

    Raises:
        UserError: a folder has no results, or a task was measured on two corpora.
    """
    found: list[tuple[Path, Row, np.ndarray | None]] = []
    for folder in folders:
        rows = read_results(folder)
        if not rows:
            raise UserError(
                f"no {RESULTS} in {folder}, so there is nothing to show; evaluate encoders first: "
                f"python -m distributed evaluate --encoders ... --data DIR --out {folder}"
            )
        resamples = read_resamples(folder)
        found += [(folder, r, resamples.get(r.get("bootstrap", {}).get("values", ""))) for r in rows]
    checkpoints: dict[str, set[str]] = {}
    for _, row, _ in found:
        checkpoints.setdefault(row["encoder"], set()).add(row["digests"]["checkpoint"])
    entries: dict[tuple[str, str, str, str], PairedEntry] = {}
    for folder, row, values_MR in found:
        name = row["encoder"]
        label = name if len(checkpoints[name]) == 1 else f"{name} ({folder})"
        entries.setdefault(
            (label, row["task"], row["protocol"], row["digests"]["corpus"]), PairedEntry(label, row, values_MR)
        )
    _refuse_two_corpora(list(entries.values()))
    return list(entries.values())


def paired_difference(entry: PairedEntry, reference: PairedEntry, metric: str) -> tuple[float, float, float] | str:
    """Returns entry - reference and its 95 % interval, or the reason why there is none."""
    one, other = entry.row, reference.row
    if one["protocol"] != other["protocol"]:
        return "other protocol"
    if one["digests"]["corpus"] != other["digests"]["corpus"]:
        return "other data"
    if entry.values_MR is None or reference.values_MR is None:
        return "no resamples kept"
    draws = [{k: v for k, v in r["bootstrap"].items() if k != "values"} for r in (one, other)]
    if draws[0] != draws[1]:
        return "other resamples"
    place = one["bootstrap"]["metrics"].index(metric)
    low, high = central_interval(entry.values_MR[place] - reference.values_MR[place])
    return entry.scored(metric)["value"] - reference.scored(metric)["value"], low, high


def _refuse_two_corpora(entries: Sequence[PairedEntry]) -> None:
    """Raises UserError for two test sets of one task: their scores must not share a column."""
    found: dict[tuple[str, str], PairedEntry] = {}
    for entry in entries:
        first = found.setdefault((entry.row["task"], entry.row["protocol"]), entry)
        if first.row["digests"]["corpus"] != entry.row["digests"]["corpus"]:
            raise UserError(
                f"{entry.row['task']} was measured on different data for {first.label} and {entry.label}, so their "
                "scores are not comparable; evaluate both on one --data DIR, or make a leaderboard of each"
            )
