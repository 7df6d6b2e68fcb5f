"""Tables and charts of one results folder: scores, differences of protocols, scores of layers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from distributed.drawing.charts import Chart, Series, line_chart
from distributed.drawing.tables import ABSENT, Cell, Group, Table, texts
from distributed.drawing.wording import fixed, interval
from distributed.marble.metrics.metrics import METRICS
from distributed.marble.tasks.marble_tasks import ALL_TASKS, task_title
from distributed.marble.tasks.tasks import READOUT_TITLES, Task

Row = Mapping[str, Any]

EXPLAINED = {
    "clean": "best epoch on validation, exact metrics, standardised features; layer and learning rate chosen on "
    "validation; 95 % intervals over pieces",
    "marble": "last epoch, monitors as MARBLE v2 logs them, raw features; the config's learning rate, the layer chosen "
    "on validation; 95 % intervals over pieces",
}
# settings of a row that its protocols may change, in words
_SETTINGS: tuple[tuple[str, Callable[[Task], str]], ...] = (
    ("metric", lambda t: METRICS[t.metric].title),
    ("learning rates", lambda t: ", ".join(f"{rate:g}" for rate in t.fit.learning_rates)),
    ("read out", lambda t: ", ".join(t.fit.readouts)),
    ("tracks too short for a slice", lambda t: "kept, padded" if t.clips.keep_short else "dropped"),
    ("channels in training", lambda t: t.channels[0]),
    ("channels elsewhere", lambda t: t.channels[1]),
    ("averaged over slices", lambda t: t.pooling),
    ("an item is", lambda t: "recording" if t.source and t.source.item_key == "ori_uid" else "file"),
    ("length and rate of files", lambda t: "the file's header" if t.header_facts else "the manifest's"),
    ("recordings in several splits", lambda t: "in the last one only" if t.drop_leaks else "in all of them"),
)
# differences that no row states: of every task, and of a kind of targets
_TRAINING = (
    "weights and monitors: the last epoch's weights, upstream's monitors, plateaus, bf16 / the best epoch's, the loss, "
    "scaled features"
)
_OF_TARGETS = {
    "frame_classes": ["chords: last until the next, N inside a slice is the chord before / as annotated"],
    "frames": [
        "references: rounded to frames / as annotated",
        "decoded: at the encoder's rate, downbeats as beats / interpolated, bars of 18-72 bpm",
    ],
}


@dataclass(frozen=True)
class Baseline:
    """Label, colour and explanation of a baseline in pages."""

    label: str
    tone: str
    explanation: str


BASELINES = {
    "random_init": Baseline("random init", "tone-5", "the same network before training"),
    "log_mel": Baseline("log-mel", "tone-2", "mean and deviation of each mel band"),
    "chroma": Baseline("chroma", "tone-3", "energy per pitch class"),
}
_OTHER_TONES = ("tone-1", "tone-4", "tone-6", "tone-7", "tone-8")


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


def comparison(rows: Sequence[Row]) -> Table | None:
    """Returns the scores of all tasks and encoders measured under both protocols; None without any."""
    values = {(r["task"], r["encoder"], r["protocol"]): r for r in rows}
    lines: list[tuple[Cell, ...]] = []
    told: dict[str, str] = {}
    for task, encoder, protocol in values:
        if protocol == "marble" and (task, encoder, "clean") in values:
            cells = [values[task, encoder, p] for p in ("marble", "clean")]
            numbers = [
                Cell(fixed(c["value"]), f"({METRICS[c['metric']].title}, {c['test_items']} items)") for c in cells
            ]
            lines.append((*texts(task, encoder), *numbers))
            told |= {t.name: "; ".join(protocol_differences(t)) for t in ALL_TASKS if t.name == task}
    notes = tuple(f"{name} (marble / clean): {differences}." for name, differences in told.items())
    head = texts("task", "encoder", "marble", "clean")
    return Table("What differs between the protocols", head, (Group("", tuple(lines)),), notes) if lines else None


def protocol_differences(task: Task) -> list[str]:
    """Returns the differences between protocols marble and clean, as "subject: marble / clean"."""
    marble, clean = task.under("marble"), task.under("clean")
    told = [f"{subject}: {of(marble)} / {of(clean)}" for subject, of in _SETTINGS if of(marble) != of(clean)]
    return [_TRAINING, *told, *_OF_TARGETS.get(task.target, [])]


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


def layer_profiles(rows: Sequence[Row]) -> tuple[Chart, ...]:
    """Draws the validation score of every layer, for each task and encoder that recorded them.

    The best layer is a dot; a readout of all layers is a dashed line, because it has no layer number.
    """
    charts = []
    others = [name for name in dict.fromkeys(r["encoder"] for r in rows) if name not in BASELINES]
    tones = {name: baseline.tone for name, baseline in BASELINES.items()} | dict(zip(others, cycle(_OTHER_TONES)))
    for task in dict.fromkeys(r["task"] for r in rows):
        own = [row for row in rows if row["task"] == task]
        profiles = [profile for row in own if (profile := _profile(row, tones[row["encoder"]]))]
        if profiles:
            told = ", ".join(words for _, _, words in profiles)
            sentence = f"Validation score of a probe on each layer, the best one marked: {told}."
            lines, marks = [line for line, _, _ in profiles], [m for _, own, _ in profiles for m in own]
            charts.append(line_chart(task_title(task), sentence, series=lines, marks=marks, x_label="layer"))
    return tuple(charts)


def ordered_encoders(rows: Sequence[Row]) -> list[str]:
    """Returns trained encoders, then the baselines in their fixed order."""
    names = list(dict.fromkeys(r["encoder"] for r in rows))
    return [n for n in names if n not in BASELINES] + [n for n in BASELINES if n in names]


def encoder_label(encoder: str) -> str:
    """Returns a baseline's label, or the last folder of a run directory."""
    if encoder in BASELINES:
        return BASELINES[encoder].label
    return encoder.rstrip("/").rsplit("/", 1)[-1]


def _profile(row: Row, tone: str) -> tuple[Series, list[Series], str] | None:
    """Returns an encoder's line, its marks, and the marks in words; None for a single layer."""
    extra = row.get("extra") or {}
    scores = [float(v) for v in extra.get("layer_profile") or ()]
    places = extra.get("layers") or range(len(scores))
    single = [(float(x), y) for x, y in zip(places, scores, strict=True) if not isinstance(x, str)]
    if len(single) < 2:
        return None
    name = encoder_label(row["encoder"])
    x, y = zip(*single, strict=True)
    # max() would keep a leading NaN, since every comparison with it is false
    best = max(range(len(y)), key=lambda i: -math.inf if math.isnan(y[i]) else y[i])
    together = [(p, v) for p, v in zip(places, scores, strict=True) if isinstance(p, str)]
    dashed = [Series("", (x[0], x[-1]), (v, v), tone, dashed=True) for _, v in together]
    words = [f"{name} layer {x[best]:g}", *(f"{READOUT_TITLES[p]} {fixed(v)} (dashed)" for p, v in together)]
    return Series(name, x, y, tone), [Series("", (x[best],), (y[best],), tone), *dashed], ", ".join(words)
