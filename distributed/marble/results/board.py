"""Leaderboard of many results and of published numbers: encoders down, tasks across.

Global tasks (one output a slice), local tasks (one a frame) and the offline tasks, without published numbers, have
separate tables. Rows of a group are comparable: each protocol is a group, and so are the published numbers. A mark
shows scores that are not comparable for another reason.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from distributed.drawing.tables import ABSENT, Cell, Group, Table, texts
from distributed.drawing.wording import EN_DASH, fixed, interval
from distributed.marble.metrics.metrics import METRICS
from distributed.marble.results.paired import PairedEntry, paired_difference
from distributed.marble.results.published import MARBLE_COLUMNS, Column, PublishedModel, caveats, published_models
from distributed.marble.results.results import Row
from distributed.marble.tasks.marble_tasks import ALL_TASKS
from distributed.marble.tasks.tasks import TASKS

_OFFLINE_COLUMNS = tuple(Column(t.name, t.title, (t.metric,)) for t in TASKS)
_LOCAL = frozenset(t.name for t in ALL_TASKS if t.by_frame)
_ABOUT = ("encoder", "protocol", "layer", "learning rate", "source")
OTHER_DATA = "†"
_HEADINGS = {
    "marble": "Measured here under protocol marble, MARBLE's own and the nearest to the published numbers; "
    "most of their authors do not say how they chose layers and learning rates.",
    "clean": "Measured here under protocol clean: other stopping, metrics and learning rates, so not comparable "
    "with the published numbers or with protocol marble.",
    "published": "Published, not measured here; no intervals are known.",
}


@dataclass(frozen=True)
class BoardPart:
    """Tasks of a table: MARBLE's or offline, global or local."""

    title: str
    columns: tuple[Column, ...]
    with_published: bool


def leaderboard(entries: Sequence[PairedEntry], *, reference: str | None) -> list[Table]:
    """Returns tables of scores, differences to a reference, and choices, for each part with results.

    Args:
        entries: rows of all encoders, tasks and protocols.
        reference: encoder to compare the others with; None omits the differences.
    """
    tables = []
    for part in _parts({e.row["task"] for e in entries}):
        own = [e for e in entries if e.row["task"] in {c.task for c in part.columns}]
        tables.append(_scores(part, own))
        if reference and (differences := _differences(part, own, reference)):
            tables.append(differences)
        tables.append(_choices(part, own))
    return tables


def _parts(measured: set[str]) -> list[BoardPart]:
    parts = []
    for name, columns, published in (("MARBLE", MARBLE_COLUMNS, True), ("Offline", _OFFLINE_COLUMNS, False)):
        there = [c for c in columns if c.task in measured]
        for kind, of_kind in (
            ("global", tuple(c for c in there if c.task not in _LOCAL)),
            ("local", tuple(c for c in there if c.task in _LOCAL)),
        ):
            if of_kind:
                parts.append(BoardPart(f"{name}, {kind} tasks", of_kind, published))
    return parts


def _scores(part: BoardPart, entries: Sequence[PairedEntry]) -> Table:
    groups = {}
    for protocol in _protocols(entries):
        encoders = _by_label(entries, protocol)
        rows = []
        for own in encoders.values():
            values = [_value(own.get(c.task), c, _best(encoders.values(), c), part) for c in part.columns]
            rows.append((*_about(list(own.values())), *values))
        groups[protocol] = Group(_HEADINGS[protocol] if part.with_published else f"Protocol {protocol}", tuple(rows))
    notes = [_reading(part, entries), *_policies(entries)]
    if part.with_published:
        groups["published"] = Group(_HEADINGS["published"], tuple(_published_rows(part.columns)))
        notes += _data_notes(entries)
    else:
        notes.append("These tasks follow MARBLE's in kind, not in data: there are no published numbers for them.")
    ordered = tuple(groups[name] for name in ("marble", "published", "clean") if name in groups)
    return Table(part.title, texts(*_ABOUT, *(c.title for c in part.columns)), ordered, tuple(notes))


def _best(encoders: Iterable[Mapping[str, PairedEntry]], column: Column) -> float:
    return max((_scored(own[column.task], column)["value"] for own in encoders if column.task in own), default=math.nan)


def _by_label(entries: Sequence[PairedEntry], protocol: str) -> dict[str, dict[str, PairedEntry]]:
    """Returns the entries of a protocol by label and task."""
    found: dict[str, dict[str, PairedEntry]] = {}
    for entry in entries:
        if entry.row["protocol"] == protocol:
            found.setdefault(entry.label, {})[entry.row["task"]] = entry
    return found


def _protocols(entries: Sequence[PairedEntry]) -> list[str]:
    return [p for p in ("marble", "clean") if any(e.row["protocol"] == p for e in entries)]


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


def _scored(entry: PairedEntry, column: Column) -> Row:
    return entry.scored(_metric(entry, column))


def _value(entry: PairedEntry | None, column: Column, best: float, part: BoardPart) -> Cell:
    if entry is None:
        return ABSENT
    found = _scored(entry, column)
    low, high = found["interval"]
    bounds = interval(100 * low, 100 * high, 1)
    other = part.with_published and any(c.startswith("other") for c in caveats(entry.row))
    strong, mark = found["value"] == best, OTHER_DATA if other else ""
    return Cell(fixed(100 * found["value"], 1), bounds, strong=strong, mark=mark)


def _published_rows(columns: Sequence[Column]) -> list[tuple[Cell, ...]]:
    return [
        (*_about_published(model), *(Cell(model.scores.get(c.published, ABSENT.text)) for c in columns))
        for model in published_models()
        if any(c.published in model.scores for c in columns)
    ]


def _about_published(model: PublishedModel) -> tuple[Cell, ...]:
    name = f"{model.name} ({model.parameters_m} M)"
    return texts(name, "as published", model.layer_policy, model.rate_policy, model.source)


def _differences(part: BoardPart, entries: Sequence[PairedEntry], reference: str) -> Table | None:
    groups = []
    for protocol in _protocols(entries):
        encoders = _by_label(entries, protocol)
        others = encoders.pop(reference, {})  # no row for the reference itself
        rows = []
        for label, own in encoders.items():
            found = [_difference(own.get(c.task), others.get(c.task), c) for c in part.columns]
            if any(c is not ABSENT for c in found):
                rows.append((*texts(label, protocol), *found))
        if rows:
            groups.append(Group("", tuple(rows)))
    if not groups:
        return None
    notes = (
        "Paired: both encoders are scored on the same resampled items (the unit is the piece or the file, never the "
        "slice). Bold: the 95 % interval excludes zero; one such difference in twenty does so by chance.",
    )
    head = texts("encoder", "protocol", *(c.title for c in part.columns))
    return Table(f"{part.title}: differences to {reference}, in points", head, tuple(groups), notes)


def _difference(entry: PairedEntry | None, reference: PairedEntry | None, column: Column) -> Cell:
    if entry is None or reference is None:
        return ABSENT
    return difference_cell(entry, reference, _metric(entry, column))


def difference_cell(entry: PairedEntry, reference: PairedEntry, metric: str) -> Cell:
    """Returns a difference in points with its interval, or why there is none.

    It is strong if the interval excludes 0.
    """
    found = paired_difference(entry, reference, metric)
    if isinstance(found, str):
        return Cell(ABSENT.text, found)
    value, low, high = found
    text, bounds = fixed(100 * value, 1, sign=True), interval(100 * low, 100 * high, 1)
    return Cell(text, bounds, strong=low > 0 or high < 0)


def _choices(part: BoardPart, entries: Sequence[PairedEntry]) -> Table:
    rows = []
    tasks = list(dict.fromkeys(c.task for c in part.columns))
    for protocol in _protocols(entries):
        for label, own in _by_label(entries, protocol).items():
            rows.append((*texts(label, protocol), *(_choice(own.get(t)) for t in tasks)))
    head = texts("encoder", "protocol", *tasks)
    return Table(f"{part.title}: what was chosen on validation", head, (Group("", tuple(rows)),))


def _choice(entry: PairedEntry | None) -> Cell:
    if entry is None:
        return ABSENT
    row = entry.row
    head = row["extra"].get("head", "")
    return Cell(str(row["extra"].get("layer_name", row["layer"])), f"lr {row['learning_rate']:g} {head}".rstrip())


def _reading(part: BoardPart, entries: Sequence[PairedEntry]) -> str:
    names = dict.fromkeys(_metric(e, c) for c in part.columns for e in entries if e.row["task"] == c.task)
    titles = "; ".join(METRICS[n].title for n in names if n in METRICS)
    return f"All values times 100, larger is better, 95 % intervals below them. Metrics: {titles}."


def _policies(entries: Sequence[PairedEntry]) -> list[str]:
    seeds = sorted({len(e.row["seeds"]) for e in entries})
    mean = f"Mean of {_range(seeds)} seeds. " if seeds != [1] else "One seed. "
    return [
        "Layer and learning rate: 'best of N' was chosen on the validation split, task by task ('of all': one probe on "
        "all layers together); the test split was read once, by the choice alone. "
        f"{mean}A bold value is the best of its group."
    ]


def _data_notes(entries: Sequence[PairedEntry]) -> list[str]:
    told = dict.fromkeys(
        f"{OTHER_DATA} {e.row['task']}, protocol {e.row['protocol']}: {reason}; not comparable with published numbers."
        for e in entries
        for reason in caveats(e.row)
        if reason.startswith(("other", "another"))
    )
    return list(told)
