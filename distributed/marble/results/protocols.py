"""Comparison of the two protocols: the settings that differ, in words, and the scores of both."""

from collections.abc import Mapping, Sequence
from typing import Any

from distributed.drawing.tables import Cell, Group, Table, texts
from distributed.drawing.wording import fixed
from distributed.marble.metrics.metrics import METRICS
from distributed.marble.tasks.marble_tasks import ALL_TASKS
from distributed.marble.tasks.tasks import Task

# differences of every task, which no row states
_TRAINING = (
    "the last epoch's weights, upstream's monitors, plateaus, bf16 / the best epoch's, the loss, scaled features"
)


def protocol_differences(task: Task) -> list[str]:
    """Returns the differences between protocols marble and clean, as "subject: marble / clean"."""
    marble, clean = task.under("marble"), task.under("clean")
    told = [
        ("weights and monitors", *_TRAINING.split(" / ")),
        ("metric", METRICS[marble.metric].title, METRICS[clean.metric].title),
        ("learning rates", _rates(marble), _rates(clean)),
        ("read out", ", ".join(marble.fit.readouts), ", ".join(clean.fit.readouts)),
        ("tracks too short for a slice", _short(marble), _short(clean)),
        ("channels in training", marble.channels[0], clean.channels[0]),
        ("channels elsewhere", marble.channels[1], clean.channels[1]),
        ("averaged over slices", marble.pooling, clean.pooling),
        ("an item is", _item(marble), _item(clean)),
        ("length and rate of files", _facts(marble), _facts(clean)),
        ("recordings in several splits", _leaks(marble), _leaks(clean)),
    ]
    if task.target == "frame_classes":
        told.append(("chords", "last until the next, N inside a slice is the chord before", "as annotated"))
    if task.target == "frames":
        told.append(("references", "rounded to frames", "as annotated"))
        told.append(("decoded", "at the encoder's rate, downbeats as beats", "interpolated, bars of 18-72 bpm"))
    return [f"{subject}: {one} / {other}" for subject, one, other in told if one != other]


def comparison(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Returns the scores of all tasks and encoders measured under both protocols; None without any."""
    values = {(r["task"], r["encoder"], r["protocol"]): r for r in rows}
    both = [(t, e) for t, e, p in values if p == "marble" and (t, e, "clean") in values]
    if not both:
        return None
    lines = []
    for task, encoder in both:
        cells = [values[task, encoder, p] for p in ("marble", "clean")]
        numbers = [Cell(fixed(c["value"]), f"({METRICS[c['metric']].title}, {c['test_items']} items)") for c in cells]
        lines.append((*texts(task, encoder), *numbers))
    of_name = {t.name: t for t in ALL_TASKS}
    notes = [
        f"{name} (marble / clean): {'; '.join(protocol_differences(of_name[name]))}."
        for name in dict.fromkeys(task for task, _ in both)
        if name in of_name
    ]
    head = texts("task", "encoder", "marble", "clean")
    return Table("What differs between the protocols", head, (Group("", tuple(lines)),), tuple(notes))


def _rates(task: Task) -> str:
    return ", ".join(f"{rate:g}" for rate in task.fit.learning_rates)


def _short(task: Task) -> str:
    return "kept, padded" if task.clips.keep_short else "dropped"


def _item(task: Task) -> str:
    if task.source is None or task.aggregate == "slice":
        return task.aggregate
    return "file" if task.source.item_key == "audio_path" else "recording"


def _facts(task: Task) -> str:
    return "the file's header" if task.header_facts else "the manifest's"


def _leaks(task: Task) -> str:
    return "in the last one only" if task.drop_leaks else "in all of them"
