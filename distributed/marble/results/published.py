"""Published scores on MARBLE's tasks, and what is known of the conditions they were made under.

The numbers are facts of published.csv, in per cent as printed: those of arXiv:2606.25713 are its tables (whose
baselines were measured there too), those of MERT-v2 its model card, which says itself that protocols may differ between
sources. None was reproduced here. The five offline tasks have no published numbers, and nothing here speaks of them.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from distributed.marble.tasks.marble_tasks import ALL_TASKS, MTG_CLASSES

PATH = Path(__file__).with_name("published.csv")

# of the test splits: GS and GTZAN follow from published accuracies, which are whole fractions of them; EMO and the MTG
# tasks are counted in the splits that MARBLE took over. The other tasks' counts are not known for sure.
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
    """A column of a leaderboard.

    Attributes:
        metrics: the names under which a row of results may have it; protocols differ.
        published: the column of published.csv; empty when nobody has published it.
    """

    task: str
    title: str
    metrics: tuple[str, ...]
    published: str = ""


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
    """One row of a published table.

    Attributes:
        parameters_m: millions of parameters.
        layer_policy, rate_policy: how the source chose layer and learning rate, as far as it says.
        scores: in per cent as printed, by column of published.csv.
    """

    name: str
    parameters_m: int
    source: str
    layer_policy: str
    rate_policy: str
    scores: Mapping[str, str]


@lru_cache(maxsize=1)
def published_models() -> tuple[PublishedModel, ...]:
    """Returns all rows of published.csv."""
    with PATH.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    facts = ("model", "params_m", "source", "layer_policy", "rate_policy")
    return tuple(
        PublishedModel(
            row["model"],
            int(row["params_m"]),
            row["source"],
            row["layer_policy"],
            row["rate_policy"],
            {name: text for name, text in row.items() if name not in facts and text},
        )
        for row in rows
    )


def caveats(row: Mapping[str, Any]) -> list[str]:
    """Returns why a row of results does not compare with published numbers; empty where no reason is known.

    The protocol is what the published tables say they follow, the data what MARBLE's manifests hold.
    """
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
