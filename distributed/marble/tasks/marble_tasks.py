"""MARBLE v2's tasks, as rows of data: manifests, slicing, label maps, heads, stopping, metrics.

A row describes protocol marble, after github.com/a43992899/MARBLE at 938c03a (configs/probe.*.yaml and
marble/tasks/*); its `clean` lists the fields that protocol clean changes. docs/marble.md explains each difference.
Settings that upstream has per encoder are those of its MERT-v1-95M configs, except the layer (or the reduction of all
layers), which is chosen on validation here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distributed.marble.tasks.chords import CHORD_CLASSES
from distributed.marble.tasks.tasks import KEYS, TASKS, Clips, Frames, ProbeFit, Readout, Task, TaskSource, select_tasks
from pupujepa.errors import UserError

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
SECTIONS = ("intro", "verse", "pre-chorus", "chorus", "bridge", "outro", "instrumental")
# section names, alone or joined by "_", that upstream maps to another
SECTION_ALIASES = {
    "solo": "instrumental",
    "pre-chorus_chorus": "chorus",
    "verse_pre-chorus": "verse",
    "intro_verse": "verse",
    "intro_chorus": "chorus",
}
MTT_TAGS = tuple(
    """guitar,classical,slow,techno,strings,drums,electronic,rock,fast,piano,ambient,beat,violin,vocal,synth,female,
    indian,opera,male,singing,vocals,no vocals,harpsichord,loud,quiet,flute,woman,male vocal,no vocal,pop,soft,sitar,
    solo,man,classic,choir,voice,new age,dance,male voice,female vocal,beats,harp,cello,no voice,weird,country,metal,
    female voice,choral""".replace("\n    ", "").split(",")
)
# from upstream's search scripts (scripts/run3.sh to run5.sh); protocol clean tries all of them
LEARNING_RATES = (5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
# upstream's configs have a layer or `MLPReduce`, its code the other two; protocol clean tries all of them
READOUTS: tuple[Readout, ...] = ("layers", "mean", "weighted", "reduced")

_FIT = ProbeFit(
    hidden=512,
    dropout=0.2,
    readouts=("layers", "reduced"),
    learning_rates=(1e-3,),
    seeds=(1234,),
    max_epochs=50,
    batch_size=64,
    accumulate=8,
    patience=10,
)
_KEY_FIT = replace(_FIT, plateau_factor=0.1)
# upstream averages gradients of four GPUs with batches of 32: one batch of 128
_TAG_FIT = replace(_FIT, batch_size=128, accumulate=1, plateau_patience=3, batch_mean_monitor=False)


_TAG_METRICS = ("average_precision", "f1_macro", "f1_micro")


def _row(name: str, title: str, source: TaskSource, *, clean: Mapping[str, Any] | None = None, **fields: Any) -> Task:
    """Returns a row; `clean` has its own changes under protocol clean, beside those of every row."""
    task = Task(name=name, title=title, source=source, **{"fit": _FIT, "channels": ("first", "first"), **fields})
    changes = {
        "fit": replace(task.fit, learning_rates=LEARNING_RATES, readouts=READOUTS, accumulate=1),
        "clips": replace(task.clips, keep_short=True),
        "channels": ("mix", "mix"),
        "pooling": "logits",
        "header_facts": True,
        "drop_leaks": True,
    }
    return replace(task, clean={**changes, **(clean or {})})


def _tagging(name: str, title: str, folder: str, *, classes: tuple[str, ...] = (), fit: ProbeFit) -> Task:
    """Returns a multi-label row, scored by macro ROC-AUC and average precision of mean logits."""
    return _row(
        name,
        title,
        TaskSource(folder, name, "tags"),
        target="multilabel",
        labels=("tags",),
        classes=classes,
        class_order="first_seen",
        metric="roc_auc_all",
        extra_metrics=("average_precision_all", *_TAG_METRICS[1:]),
        clips=Clips(seconds=30.0, max_slices=None, min_ratio=0.8),
        channels=("mix", "mix"),
        pooling="logits_bf16",
        fit=fit,
        clean={"metric": "roc_auc", "extra_metrics": _TAG_METRICS},
    )


_HOOKTHEORY_KEY = TaskSource("HookTheory", "HookTheoryKey", "key", item_key="ori_uid", gated=True)
_EVERY_FRAME = Frames(train_tracks=None, valid_tracks=None, layers=None)
MARBLE_TASKS: tuple[Task, ...] = (
    _row(
        "EMO",
        "EMO: arousal and valence",
        TaskSource("EMO", "EMO", "arousal_valence"),
        target="regression",
        labels=("arousal", "valence"),
        transforms=("raw", "raw"),
        metric="r2",
        extra_metrics=("r2_arousal", "r2_valence"),
        clips=Clips(15.0, None, 0.8),
        fit=replace(_FIT, max_epochs=100, accumulate=4, patience=20),
    ),
    _row(
        "GS",
        "GiantSteps: key",
        TaskSource("GS", "GS", "key", item_key="ori_uid"),
        target="multiclass",
        labels=("key",),
        classes=KEYS,
        metric="key_weighted",
        extra_metrics=("accuracy",),
        clips=Clips(30.0, None, 0.8),
        pooling="logits_bf16",
        fit=replace(_KEY_FIT, accumulate=4, patience=20),
    ),
    _row(
        "GTZANGenre",
        "GTZAN: genre",
        TaskSource("GTZAN", "GTZANGenre", "genre"),
        target="multiclass",
        labels=("genre",),
        classes=GENRES,
        metric="accuracy",
        clips=Clips(30.2, None, 0.8),
        pooling="probabilities",
        fit=replace(_FIT, learning_rates=(5e-3,), max_epochs=100, patience=20, plateau_patience=6),
        clean={"pooling": "probabilities"},
    ),
    _row(
        "GTZANBeatTracking",
        "GTZAN: beats",
        TaskSource("GTZAN", "GTZANBeatTracking", "beats"),
        target="frames",
        labels=("beats", "downbeats"),
        metric="beat_f1",
        extra_metrics=("downbeat_f1",),
        clips=Clips(10.0, None, 0.8),
        frames=_EVERY_FRAME,
        fit=replace(_FIT, batch_mean_monitor=False),  # its metric pools the events of the whole split
        clean={"metric": "beat_f1_tracks", "extra_metrics": ("downbeat_f1_tracks", "beat_f1", "downbeat_f1")},
    ),
    _row(
        "HookTheoryKey",
        "HookTheory: key",
        _HOOKTHEORY_KEY,
        target="multiclass",
        labels=("key",),
        classes=KEYS,
        metric="key_weighted",
        extra_metrics=("accuracy",),
        clips=Clips(15.0, None, 0.8),
        pooling="logits_bf16",
        fit=_KEY_FIT,
        channels=("random", "mix"),
        clean={"source": replace(_HOOKTHEORY_KEY, item_key="audio_path")},
    ),
    _row(
        "HookTheoryStructure",
        "HookTheory: structure",
        TaskSource("HookTheory", "HookTheoryStructure", "section", gated=True),
        target="multiclass",
        labels=("section",),
        classes=SECTIONS,
        metric="accuracy",
        extra_metrics=("balanced_accuracy",),
        clips=Clips(15.0, None, 0.1),
        pooling="logits_bf16",
        fit=replace(_KEY_FIT, accumulate=4),
        channels=("random", "mix"),
    ),
    _tagging("MTT", "MagnaTagATune: tags", "MTT", classes=MTT_TAGS, fit=_TAG_FIT),
    *(
        _tagging(f"MTG{kind}", f"MTG-Jamendo: {what}", "MTG", fit=replace(_TAG_FIT, max_epochs=20))
        for kind, what in (
            ("Genre", "genres"),
            ("Instrument", "instruments"),
            ("Mood", "moods and themes"),
            ("Top50", "top 50 tags"),
        )
    ),
    _row(
        "Chords1217",
        "Chords1217: major and minor chords",
        TaskSource("Chords1217", "Chords1217", "chords", gated=True),
        target="frame_classes",
        labels=("chords",),
        classes=CHORD_CLASSES,
        metric="frame_accuracy_batches",
        extra_metrics=("frame_accuracy",),
        clips=Clips(15.0, None, 0.1),
        frames=_EVERY_FRAME,
        channels=("random_half_mix", "mix"),
        clean={"metric": "frame_accuracy", "extra_metrics": ()},
    ),
)
ALL_TASKS: tuple[Task, ...] = (*TASKS, *MARBLE_TASKS)
# number of classes in MARBLE's manifests, for tasks with classes from the training split
MTG_CLASSES = {"MTGGenre": 87, "MTGInstrument": 40, "MTGMood": 56, "MTGTop50": 50}
_GROUPS = {"all": ALL_TASKS, "offline": TASKS, "marble": MARBLE_TASKS}


def choose_tasks(names: Sequence[str]) -> tuple[Task, ...]:
    """Returns the named rows in table order; names are tasks or the groups all, offline, marble.

    Raises:
        UserError: no row has the name; the nearest one is suggested.
    """
    if not names:
        raise UserError("--tasks is empty, so nothing can be measured; name tasks, or all, offline or marble")
    expanded = [task.name for name in names for task in _GROUPS.get(name, ())]
    return select_tasks([*expanded, *(name for name in names if name not in _GROUPS)], ALL_TASKS)


def task_title(name: str) -> str:
    """Returns a task's title; its name if it is in no table."""
    return next((task.title for task in ALL_TASKS if task.name == name), name)
