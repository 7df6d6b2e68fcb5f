"""Published scores on MARBLE's tasks, and their known conditions.

published.csv has the numbers in per cent as printed: those of arXiv:2606.25713 are its tables (whose baselines were
measured there too), those of MERT-v2 its model card, which warns that protocols may differ between sources. None was
reproduced here. The five offline tasks have no published numbers.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from distributed.marble.tasks.marble_tasks import ALL_TASKS, MTG_CLASSES

PATH = Path(__file__).with_name("published.csv")

# sizes of test splits: GS and GTZAN follow from published accuracies, which are multiples of 1 / size; EMO and MTG are
# counted in the splits that MARBLE adopted. The sizes of the other tasks are uncertain.
TEST_ITEMS = {
    "EMO": 125,
    "GS": 604,
    "GTZANGenre": 290,
    "MTGGenre": 11479,
    "MTGInstrument": 5115,
    "MTGMood": 4231,
    "MTGTop50": 11356,
}


@dataclass(frozen=True)
class Column:
    """A column of a leaderboard."""

    task: str
    title: str
    metrics: tuple[str, ...]  # possible names in a row of results; protocols differ
    published: str = ""  # column of published.csv; "" if unpublished


_TAGS = (("ROC-AUC", ("roc_auc_all", "roc_auc"), "roc"), ("AP", ("average_precision_all", "average_precision"), "ap"))
MARBLE_COLUMNS = (
    Column("EMO", "EMO valence, R²", ("r2_valence",), "emo_r2_valence"),
    Column("EMO", "EMO arousal, R²", ("r2_arousal",), "emo_r2_arousal"),
    Column("GS", "GiantSteps key, weighted", ("key_weighted",), "gs_key_refined"),
    Column("GTZANGenre", "GTZAN genre, accuracy", ("accuracy",), "gtzan_genre_acc"),
    Column("GTZANBeatTracking", "GTZAN beat F1", ("beat_f1_tracks", "beat_f1"), "gtzan_beat_f1"),
    Column("HookTheoryKey", "HookTheory key, weighted", ("key_weighted",), "hooktheory_key_refined"),
    Column("HookTheoryStructure", "HookTheory structure, accuracy", ("accuracy",), "hooktheory_structure_acc"),
    *(Column("MTT", f"MTT {title}", metrics, f"mtt_{short}") for title, metrics, short in _TAGS),
    *(
        Column(f"MTG{kind}", f"MTG {kind.lower()} {title}", metrics, f"mtg_{kind.lower()}_{short}")
        for kind in ("Genre", "Instrument", "Mood", "Top50")
        for title, metrics, short in _TAGS
    ),
    Column("Chords1217", "Chords1217, frame accuracy", ("frame_accuracy_batches", "frame_accuracy"), "chords1217_acc"),
)


@dataclass(frozen=True)
class PublishedModel:
    """One row of a published table."""

    name: str
    parameters_m: int  # millions of parameters
    source: str
    # the source's choice of layer and learning rate, if stated
    layer_policy: str
    rate_policy: str
    scores: Mapping[str, str]  # per cent as printed, by column of published.csv


@lru_cache(maxsize=1)
def published_models() -> tuple[PublishedModel, ...]:
    """Returns all rows of published.csv."""
    with PATH.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        PublishedModel(
            name=row.pop("model"),
            parameters_m=int(row.pop("params_m")),
            source=row.pop("source"),
            layer_policy=row.pop("layer_policy"),
            rate_policy=row.pop("rate_policy"),
            scores={name: text for name, text in row.items() if text},
        )
        for row in rows
    )


def caveats(row: Mapping[str, Any]) -> list[str]:
    """Returns the known reasons why a row of results is not comparable with published numbers."""
    # the published tables claim protocol marble and the data of MARBLE's manifests
    reasons = [] if row["protocol"] == "marble" else [f"protocol {row['protocol']}"]
    task = next((t for t in ALL_TASKS if t.name == row["task"]), None)
    expected = TEST_ITEMS.get(row["task"], row["test_items"])
    if row["test_items"] != expected:
        reasons.append(f"other data: {row['test_items']} test items, where MARBLE's test split has {expected}")
    classes = row["extra"].get("classes")
    if classes is not None and classes != MTG_CLASSES.get(row["task"], classes):
        reasons.append(f"other data: {classes} classes instead of {MTG_CLASSES[row['task']]}")
    if task is not None and row["extra"].get("head", task.fit.head) != task.fit.head:
        reasons.append(f"another head: {row['extra']['head']} instead of {task.fit.head}")
    return reasons
