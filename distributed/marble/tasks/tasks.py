"""Tasks as rows of data: a new task is a new row, never a new program.

The five rows below run offline, on the corpus that `python -m data scores` renders. Each has the metric and the
aggregation of the MARBLE task in `follows`. Their head is linear, unlike MARBLE's: a score then measures the
representation, not what 512 hidden units can extract from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

from pupujepa.errors import UserError

TargetKind = Literal["multiclass", "multilabel", "regression", "frames", "frame_classes"]
Transform = Literal["log", "raw"]
Protocol = Literal["clean", "marble"]
Readout = Literal["layers", "mean", "weighted", "reduced"]
ChannelMode = Literal["first", "mix", "random", "random_half_mix"]
LabelRule = Literal["arousal_valence", "key", "genre", "beats", "section", "tags", "chords"]

# the list of the offline corpus; see datasets/corpus.py
TRACKS = "tracks.jsonl"
READOUT_TITLES: dict[str, str] = {
    "mean": "mean of layers",
    "weighted": "weighted sum of layers",
    "reduced": "reduction of all layers",
}
_TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in _TONICS)


@dataclass(frozen=True)
class Clips:
    """Rule for cutting a track into slices."""

    seconds: float = 5.12  # length of a slice; slices do not overlap
    max_slices: int | None = 1  # slices kept per track, spread evenly over it (one: the middle); None keeps all
    min_ratio: float = 0.8  # keep a last, partial slice, zero-padded, from this share of a whole one
    keep_short: bool = False  # keep one zero-padded slice of a track that would have none


@dataclass(frozen=True)
class TaskSource:
    """Manifests of a MARBLE task: their paths and fields."""

    folder: str  # folder below MARBLE's data folder
    stem: str  # start of the manifests' names: STEM.train.jsonl, STEM.val.jsonl, STEM.test.jsonl
    label: LabelRule  # reader of the field `label`
    item_key: Literal["audio_path", "ori_uid"] = "audio_path"  # field that rows of one item share
    gated: bool = False  # True if the publisher grants access on request only

    @property
    def name(self) -> str:
        """Path pattern of all three manifests."""
        return f"data/{self.folder}/{self.stem}.{{train,val,test}}.jsonl"

    def manifest(self, split: str) -> str:
        """Returns the path of a split's manifest in MARBLE's configs, relative to its checkout."""
        return f"data/{self.folder}/{self.stem}.{'val' if split == 'valid' else split}.jsonl"


@dataclass(frozen=True)
class Frames:
    """Amount of frame features that a task of frames keeps."""

    # tracks used for training, drawn by a hash of their id, to save storage; None keeps all
    train_tracks: int | None = 150
    valid_tracks: int | None = 50  # the same for validation; the test split keeps all
    layers: int | None = 3  # number of layers probed, evenly spread from the first to the last; None for all


@dataclass(frozen=True)
class ProbeFit:
    """Training settings of a task's probes."""

    hidden: int = 0  # hidden units; 0 for a linear head, 512 for MARBLE's Linear-ReLU-Dropout-Linear
    dropout: float = 0.0
    # inputs to probe: every layer alone, and combinations of all layers (heads.py)
    readouts: tuple[Readout, ...] = ("layers",)
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)  # one probe each, for every layer or readout and seed
    seeds: tuple[int, ...] = (0, 1)
    max_epochs: int = 100
    batch_size: int = 64  # slices per step
    # loader batches per step; their gradients are divided by this number and summed, also in the last, smaller group of
    # an epoch. Upstream's monitors are means over loader batches.
    accumulate: int = 1
    patience: int = 8  # epochs without a better monitor before a probe stops
    plateau_factor: float = 0.5  # protocol marble: factor on the rate at a plateau
    plateau_patience: int = 5  # protocol marble: epochs without a better monitor before that
    # protocol marble: the monitor is the metric's mean over batches of slices, as upstream logs it, not the metric of
    # all items
    batch_mean_monitor: bool = True
    # protocol clean: centre and scale features per dimension with statistics of the training split, so that the same
    # learning rates suit encoders of any scale. Protocol marble never does.
    standardise: bool = True

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}, so a step would end "
                "inside a loader batch"
            )

    @property
    def loader_batch(self) -> int:
        """Slices in a batch of upstream's loader."""
        return self.batch_size // self.accumulate

    def readouts_of(self, layers: int) -> tuple[Readout, ...]:
        """Returns the readouts for an encoder with `layers` layers; a single layer has only itself."""
        return self.readouts if layers > 1 else ("layers",)

    @property
    def head(self) -> str:
        """Name of the head in results."""
        return f"mlp{self.hidden}" if self.hidden else "linear"


@dataclass(frozen=True)
class Task:
    """One row of the benchmark."""

    name: str
    title: str  # name in tables
    target: TargetKind
    labels: tuple[str, ...]  # keys of a track's labels; tracks without all of them are left out
    # reported metric, which on validation chooses layer and learning rate. All metrics are in `metrics.py`, and larger
    # is better.
    metric: str
    extra_metrics: tuple[str, ...] = ()
    follows: str = ""  # the MARBLE task with the same metric; "" for one of MARBLE's own
    classes: tuple[str, ...] = ()  # classes in order; empty for those of the training split
    # order of classes from the training split: sorted, or by first appearance
    class_order: Literal["sorted", "first_seen"] = "sorted"
    # transform of each label, regression only; "log", for ratios and long tails, is standardised on the training split,
    # "raw" is not
    transforms: tuple[Transform, ...] = ()
    clips: Clips = field(default_factory=Clips)
    frames: Frames | None = None
    # average of logits, of logits rounded to bf16 (as is the mean), or of softmax probabilities
    pooling: Literal["logits", "logits_bf16", "probabilities"] = "logits"
    fit: ProbeFit = field(default_factory=ProbeFit)
    source: TaskSource | None = None  # MARBLE's manifests; None for our track list
    # channels of multi-channel files, in training and elsewhere
    channels: tuple[ChannelMode, ChannelMode] = ("mix", "mix")
    header_facts: bool = False  # take sample rate, length and channels from the files, not from the manifest
    drop_leaks: bool = False  # keep a group that is in several splits only in the last of train, valid, test
    # fields that protocol clean changes; the row itself is protocol marble
    clean: Mapping[str, Any] = field(default_factory=dict)

    @property
    def list_name(self) -> str:
        """Name of its track list, unique in an evaluation."""
        return TRACKS if self.source is None else self.source.name

    def under(self, protocol: Protocol) -> "Task":
        """Returns the row under a protocol."""
        return replace(self, **self.clean, clean={}) if protocol == "clean" else replace(self, clean={})

    @property
    def by_frame(self) -> bool:
        """True for a local task: an output for every frame, slices scored alone; False for a global one."""
        return self.frames is not None


TASKS: tuple[Task, ...] = (
    Task(
        name="key",
        title="Key",
        follows="GS",
        target="multiclass",
        labels=("key",),
        classes=KEYS,
        metric="key_weighted",
        extra_metrics=("accuracy",),
    ),
    Task(
        name="beats",
        title="Beats",
        follows="GTZANBeatTracking",
        target="frames",
        labels=("beats", "downbeats"),
        metric="beat_f1",
        extra_metrics=("downbeat_f1",),
        clips=Clips(seconds=10.24),
        frames=Frames(),
        fit=ProbeFit(
            learning_rates=(3e-3, 1e-2, 3e-2),
            seeds=(0,),
            max_epochs=30,
            batch_size=8,
            patience=5,
            batch_mean_monitor=False,
        ),
    ),
    Task(
        name="instruments",
        title="Instruments",
        follows="MTGInstrument",
        target="multilabel",
        labels=("instruments",),
        metric="roc_auc",
        extra_metrics=("average_precision",),
        fit=ProbeFit(plateau_patience=3, batch_mean_monitor=False),
    ),
    Task(
        name="tempo",
        title="Tempo and density",
        follows="EMO",
        target="regression",
        labels=("tempo_bpm", "note_density_hz"),
        transforms=("log", "log"),
        metric="r2",
        extra_metrics=("r2_first", "r2_second"),
    ),
    Task(
        name="collection",
        title="Collection",
        follows="GTZANGenre",
        target="multiclass",
        labels=("collection",),
        metric="accuracy",
        extra_metrics=("balanced_accuracy",),
    ),
)


def select_tasks(names: Sequence[str], table: tuple[Task, ...] = TASKS) -> tuple[Task, ...]:
    """Returns the named rows of a table, in table order; "all" means every row.

    Raises:
        UserError: no row has the name; the nearest one is suggested.
    """
    known = {task.name: task for task in table}
    for name in names:
        if name != "all" and name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else ""
            raise UserError(f"no task is called {name!r}; {hint} choose from: all, {', '.join(known)}")
    return tuple(task for task in table if "all" in names or task.name in names)
