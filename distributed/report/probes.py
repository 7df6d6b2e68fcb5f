"""The probe table: scores of probes on the frozen features, beside baselines.

The baselines are the untrained network of the same shape and plain audio statistics. Each row also has the paired
difference over the same test items with its interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distributed.drawing.charts import Chart
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


@dataclass(frozen=True)
class ProbeTable:
    """The table of one protocol, and a forest plot of the differences to each baseline: (label, drawing)."""

    protocol: str
    table: Table
    forests: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Probes:
    """All tables of a run and the layer profiles."""

    tables: tuple[ProbeTable, ...]
    profiles: tuple[Chart, ...]
    digests: tuple[tuple[str, str], ...]


def probe_section(run: RunInputs) -> Probes | Missing:
    """Returns the tables, one for each protocol in results.jsonl."""
    if not run.results:
        return Missing(
            "results.jsonl, the scores of the probes",
            f"python -m distributed evaluate --encoders {run.location} random_init log_mel chroma "
            f"--data corpora/scores --out {run.location}",
        )
    protocols = sorted({str(r.get("protocol", "")) for r in run.results})
    tables = tuple(probe_table([r for r in run.results if str(r.get("protocol", "")) == p], p) for p in protocols)
    return Probes(tables, layer_profiles(run.results), _digests(run.results))


def probe_table(rows: Sequence[Row], protocol: str) -> ProbeTable:
    """Returns the table of one protocol: a row per task, a column per encoder, then the difference."""
    encoders = ordered_encoders(rows)
    by_place = {(r["task"], r["encoder"]): r for r in rows}
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    trained = next((e for e in encoders if e not in BASELINES), None)
    gains = [difference_to(by_place.get((t, trained)), REFERENCE) for t in tasks]
    scale, drawn, zero = forest_column("Difference drawn", gains)
    head = (Cell("Task"), *map(_encoder, encoders), Cell(f"Trained {MINUS} random init"), scale)
    lines = [
        (*_scores([by_place.get((t, e)) for e in encoders]), _gain(gain), drawing)
        for t, gain, drawing in zip(tasks, gains, drawn, strict=True)
    ]
    return ProbeTable(
        protocol,
        Table(f"Probe table, protocol {protocol}", head, (Group("", tuple(lines)),), tuple(probe_notes(gains)), zero),
        tuple(_forests([by_place[t, trained] for t in tasks if (t, trained) in by_place])),
    )


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
    lost = [d for d in known if d.value < -d.half_width]
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


def _encoder(name: str) -> Cell:
    """Returns the head of an encoder's column; a trained encoder has the first tone."""
    if name in BASELINES:
        return Cell(BASELINES[name].label, BASELINES[name].explanation, look=f"encoder {BASELINES[name].tone}")
    return Cell(encoder_label(name), "frozen teacher of this run", look="encoder tone-1")


def _scores(rows: Sequence[Row | None]) -> list[Cell]:
    """Returns the cells of a task: its name with its test items, then its scores."""
    known = [r for r in rows if r is not None]
    first, best = known[0], max(r["value"] for r in known)
    items = f"{count_of(first['test_items'], 'test item')} of {count_of(first['extra']['test_units'], 'piece')}"
    name = Cell(task_title(first["task"]), f"{metric_title(first['metric'])}, {items}")
    return [name, *(replace(score_cell(r, best), detail=_choice(r)) if r else ABSENT for r in rows)]


def _choice(row: Row) -> str:
    layer = row["layer"]
    return f"{READOUT_TITLES.get(layer, f'layer {layer}')}, lr {scientific(row['learning_rate'], 0)}"


def _gain(gain: Difference | None) -> Cell:
    if gain is None:
        return ABSENT
    bounds = interval(gain.lo, gain.hi)
    return Cell(fixed(gain.value, sign=True), bounds, strong=gain.exceeds, value=gain.value, look="gain")


def _forests(rows: Sequence[Row]) -> list[tuple[str, str]]:
    found = {b.label: [d for r in rows if (d := difference_to(r, name))] for name, b in BASELINES.items()}
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
