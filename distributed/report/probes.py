"""The probe table: what the frozen features know, beside baselines that a reader should ask for.

A number alone says little: the table holds the untrained network of the same shape and plain audio statistics next to
the trained encoder, and the paired difference over the same test items with its interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from distributed.drawing.charts import Chart, Series, line_chart
from distributed.drawing.forest import CELL_WIDTH, Difference, forest_axis, forest_cell, forest_plot, shared_axis
from distributed.drawing.wording import count_of, fixed, interval, listed, scientific
from distributed.marble.metrics import METRICS
from distributed.marble.tasks import READOUT_TITLES, TASKS
from distributed.report.inputs import Missing, Row, RunInputs

BASELINES = {"random_init": "random init", "log_mel": "log-mel", "chroma": "chroma"}
TONES = {"random_init": "tone-5", "log_mel": "tone-2", "chroma": "tone-3"}
_OTHER_TONES = ("tone-1", "tone-4", "tone-6", "tone-7", "tone-8")
EXPLAINED = {
    "random_init": "the same network before training",
    "log_mel": "mean and deviation of each mel band",
    "chroma": "energy per pitch class",
}
REFERENCE = "random_init"


@dataclass(frozen=True)
class Cell:
    """One value of the table; `value` is exactly the number of results.jsonl."""

    value: float
    lo: float
    hi: float
    best: bool
    detail: str

    @property
    def text(self) -> str:
        """The value as printed."""
        return fixed(self.value)

    @property
    def interval(self) -> str:
        """The interval as printed."""
        return interval(self.lo, self.hi)


@dataclass(frozen=True)
class Line:
    """One task of the table."""

    task: str
    metric: str
    test_items: str
    cells: tuple[Cell | None, ...]
    difference: Difference | None
    forest: str


@dataclass(frozen=True)
class Table:
    """One protocol's table with its forest of differences to all baselines, and the sentences that read it."""

    protocol: str
    encoders: tuple[tuple[str, str, str], ...]  # (label, tone, explanation)
    lines: tuple[Line, ...]
    axis: str
    zero: str
    sentences: tuple[str, ...]
    forests: tuple[tuple[str, str], ...]  # (baseline, drawing)


@dataclass(frozen=True)
class Probes:
    """All tables of a run and the layer profiles."""

    tables: tuple[Table, ...]
    profiles: tuple[Chart, ...]
    digests: tuple[tuple[str, str], ...]


def probe_section(run: RunInputs) -> Probes | Missing:
    """Returns the tables, one for each protocol found in results.jsonl."""
    if not run.results:
        return Missing(
            "results.jsonl, the scores of the probes",
            f"python -m distributed evaluate --encoders {run.location} random_init log_mel chroma "
            f"--data corpora/scores --out {run.location}",
        )
    protocols = sorted({str(r.get("protocol", "")) for r in run.results})
    tables = tuple(probe_table([r for r in run.results if str(r.get("protocol", "")) == p], p) for p in protocols)
    return Probes(tables, layer_profiles(run.results), _digests(run.results))


def probe_table(rows: Sequence[Row], protocol: str) -> Table:
    """Arranges rows of one protocol: tasks down, encoders across, the difference and its drawing at the end."""
    encoders = ordered_encoders(rows)
    by_place = {(r["task"], r["encoder"]): r for r in rows}
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    trained = next((e for e in encoders if e not in BASELINES), None)
    gains = {t: difference_to(by_place.get((t, trained)), REFERENCE) for t in tasks}
    axis = shared_axis([d for d in gains.values() if d], 6, CELL_WIDTH - 6)
    lines = tuple(_line(t, [by_place.get((t, e)) for e in encoders], gains[t], axis) for t in tasks)
    return Table(
        protocol,
        tuple((encoder_label(e), TONES.get(e, "tone-1"), _explanation(e)) for e in encoders),
        lines,
        forest_axis(axis),
        f"{100 * axis(0) / CELL_WIDTH:.1f}%",
        tuple(reading(gains)),
        tuple(_forests([by_place[t, trained] for t in tasks if (t, trained) in by_place])),
    )


def ordered_encoders(rows: Sequence[Row]) -> list[str]:
    """Returns trained encoders first, then the baselines in their fixed order."""
    names = list(dict.fromkeys(r["encoder"] for r in rows))
    return [n for n in names if n not in BASELINES] + [n for n in BASELINES if n in names]


def encoder_label(encoder: str) -> str:
    """Returns the column's head: baselines by name, a run directory by its last folder."""
    return BASELINES.get(encoder) or encoder.rstrip("/").rsplit("/", 1)[-1]


def difference_to(row: Row | None, baseline: str) -> Difference | None:
    """Returns the paired difference of a row to a baseline, when the evaluator computed one."""
    entry = ((row or {}).get("difference_to") or {}).get(baseline)
    if row is None or not entry:
        return None
    lo, hi = entry["interval"]
    return Difference(task_label(row["task"]), entry["value"], lo, hi)


def task_label(task: str) -> str:
    """Returns a task's title."""
    return next((t.title for t in TASKS if t.name == task), task.replace("_", " "))


def metric_label(metric: str) -> str:
    """Returns a metric's title."""
    return METRICS[metric].title if metric in METRICS else metric


def reading(gains: dict[str, Difference | None]) -> list[str]:
    """Says in words which tasks gained, which did not, and which lost."""
    known = [d for d in gains.values() if d is not None]
    if not known:
        return ["The results hold no paired difference to the untrained network, so no gain can be claimed."]
    gained = sorted((d for d in known if d.exceeds), key=lambda d: -d.value)
    lost = [d for d in known if d.value < -d.half_width]
    level = [d for d in known if not d.exceeds and d not in lost]
    sentences = []
    if gained:
        parts = [f"{d.label.lower()} {fixed(d.value, sign=True)} {interval(d.lo, d.hi)}" for d in gained]
        sentences.append(
            f"Training helped on {len(gained)} of {count_of(len(known), 'task')} by more than the interval's "
            f"half-width: {listed(parts)}."
        )
    else:
        sentences.append("On no task does training help by more than the interval's half-width.")
    if level:
        parts = [f"{d.label.lower()} ({fixed(d.value, sign=True)} {interval(d.lo, d.hi)})" for d in level]
        sentences.append(f"No difference that these test items could show: {listed(parts)}.")
    if lost:
        parts = [f"{d.label.lower()} ({fixed(d.value, sign=True)} {interval(d.lo, d.hi)})" for d in lost]
        sentences.append(f"Worse than the untrained network: {listed(parts)}.")
    return sentences


def layer_profiles(rows: Sequence[Row]) -> tuple[Chart, ...]:
    """Draws the validation score of every layer, for each task and encoder that recorded them.

    The best layer is a dot; what reads all layers together is a dashed line, for it has no place among them.
    """
    charts = []
    others = [name for name in dict.fromkeys(r["encoder"] for r in rows) if name not in TONES]
    tones = TONES | dict(zip(others, cycle(_OTHER_TONES)))
    for task in dict.fromkeys(r["task"] for r in rows):
        own = [row for row in rows if row["task"] == task]
        profiles = [profile for row in own if (profile := _profile(row, tones[row["encoder"]]))]
        if profiles:
            told = ", ".join(words for _, _, words in profiles)
            sentence = f"Validation score of a probe on each layer, the best one marked: {told}."
            lines, marks = [line for line, _, _ in profiles], [m for _, own, _ in profiles for m in own]
            charts.append(line_chart(task_label(task), sentence, series=lines, marks=marks, x_label="layer"))
    return tuple(charts)


def _profile(row: Row, tone: str) -> tuple[Series, list[Series], str] | None:
    """Returns an encoder's line, what is marked beside it, and the marks in words; None for a single layer."""
    extra = row.get("extra") or {}
    scores = [float(v) for v in extra.get("layer_profile") or ()]
    places = extra.get("layers") or range(len(scores))
    single = [(float(x), y) for x, y in zip(places, scores, strict=True) if not isinstance(x, str)]
    if len(single) < 2:
        return None
    name = encoder_label(row["encoder"])
    x, y = zip(*single, strict=True)
    best = max(range(len(y)), key=lambda i: -math.inf if math.isnan(y[i]) else y[i])
    together = [(p, v) for p, v in zip(places, scores, strict=True) if isinstance(p, str)]
    dashed = [Series("", (x[0], x[-1]), (v, v), tone, dashed=True) for _, v in together]
    words = [f"{name} layer {x[best]:g}", *(f"{READOUT_TITLES[p]} {fixed(v)} (dashed)" for p, v in together)]
    return Series(name, x, y, tone), [Series("", (x[best],), (y[best],), tone), *dashed], ", ".join(words)


def _line(task: str, rows: Sequence[Row | None], gain: Difference | None, axis) -> Line:
    known = [r for r in rows if r is not None]
    best = max(r["value"] for r in known)
    return Line(
        task_label(task),
        metric_label(str(known[0].get("metric", ""))),
        _test_items(known[0]),
        tuple(_cell(r, best) if r else None for r in rows),
        gain,
        forest_cell(gain, axis) if gain else "",
    )


def _cell(row: Row, best: float) -> Cell:
    lo, hi = row["interval"]
    layer, rate = row.get("layer"), row.get("learning_rate")
    detail = [READOUT_TITLES.get(layer, f"layer {layer}")] if layer is not None else []
    detail += [f"lr {scientific(rate, 0)}"] if isinstance(rate, float) else []
    return Cell(row["value"], lo, hi, row["value"] == best, ", ".join(detail))


def _test_items(row: Row) -> str:
    items, pieces = row.get("test_items"), (row.get("extra") or {}).get("test_units")
    if items is None:
        return ""
    return count_of(items, "test item") + (f" of {count_of(pieces, 'piece')}" if pieces else "")


def _explanation(encoder: str) -> str:
    return EXPLAINED.get(encoder, "frozen teacher of this run")


def _forests(rows: Sequence[Row]) -> list[tuple[str, str]]:
    found = {label: [d for r in rows if (d := difference_to(r, baseline))] for baseline, label in BASELINES.items()}
    everything = [d for differences in found.values() for d in differences]
    return [
        (label, forest_plot(found[label], title=f"Trained minus {label}, 95 % intervals", scale_of=everything))
        for label in found
        if found[label]
    ]


def _digests(rows: Sequence[Row]) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for row in rows:
        for name, digest in (row.get("digests") or {}).items():
            found.setdefault(f"{row['encoder']} {name}" if name == "checkpoint" else name, str(digest))
    return tuple(found.items())
