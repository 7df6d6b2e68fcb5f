"""The tasks, as rows of data: a new task is a new row here, never a new program.

The five rows below run offline, on the corpus that `python -m data scores` renders. Each follows the MARBLE task named
beside it in what is measured and how items are aggregated. They differ from MARBLE in the head: theirs is linear, so
that a score says what the representation holds and not what 512 hidden units can dig out of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

from pupujepa.errors import UserError

TargetKind = Literal["multiclass", "multilabel", "regression", "frames", "frame_classes"]
Transform = Literal["identity", "log", "raw"]
Protocol = Literal["clean", "marble"]
Readout = Literal["layers", "mean", "weighted", "reduced"]
ChannelMode = Literal["first", "mix", "random", "random_half_mix"]
LabelRule = Literal["arousal_valence", "key", "genre", "beats", "section", "tags", "chords"]

READOUT_TITLES: dict[str, str] = {
    "mean": "mean of layers",
    "weighted": "weighted sum of layers",
    "reduced": "reduction of all layers",
}
_TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in _TONICS)


@dataclass(frozen=True)
class Clips:
    """How a track is cut into slices, and nothing about what is done with them.

    Attributes:
        seconds: length of a slice; slices do not overlap.
        max_slices: slices kept per track, spread evenly over it (one: the middle); None keeps all.
        min_ratio: a last, partial slice is kept and zero-padded when it holds this share of a whole one.
        keep_short: a track that would have no slice at all keeps one, zero-padded.
    """

    seconds: float = 5.12
    max_slices: int | None = 1
    min_ratio: float = 0.8
    keep_short: bool = False


@dataclass(frozen=True)
class TaskSource:
    """Where a task of MARBLE finds its manifests and what is in them.

    Attributes:
        folder: below MARBLE's data folder.
        stem: of the manifests' names: STEM.train.jsonl, STEM.val.jsonl, STEM.test.jsonl.
        label: how the field `label` is read.
        item_key: the field whose equal values make slices one item.
        gated: its publisher wants to be asked for access first.
    """

    folder: str
    stem: str
    label: LabelRule
    item_key: Literal["audio_path", "ori_uid"] = "audio_path"
    gated: bool = False

    @property
    def name(self) -> str:
        """All three manifests in one path."""
        return f"data/{self.folder}/{self.stem}.{{train,val,test}}.jsonl"

    def manifest(self, split: str) -> str:
        """Returns the path of a split's manifest as MARBLE's configs have it, relative to its checkout."""
        return f"data/{self.folder}/{self.stem}.{'val' if split == 'valid' else split}.jsonl"


@dataclass(frozen=True)
class Frames:
    """How times become frame targets, and frame outputs times again.

    Attributes:
        neighbours: targets are 1, 1/2, 1/4, ... at this many frames on each side of an event.
        bpm_ranges: protocol clean: tempo range of the decoder, one for each channel; the second fits bars.
        decode_rates_hz: protocol clean: activations of each channel are interpolated to about this rate before
            decoding, so that no tempo falls between two intervals. Bars are long enough at 25 frames/s.
        marble_bpm_ranges: protocol marble, which decodes downbeats as if they were beats, at the encoder's rate.
        train_tracks: tracks used for training, drawn by a hash of their id; all layers of all frames would not fit.
            None keeps all.
        valid_tracks: the same for validation. The test split is never thinned.
        layers: layers probed, evenly spread from the first to the last; None for all.
    """

    neighbours: int = 2
    bpm_ranges: tuple[tuple[float, float], ...] = ((55.0, 215.0), (18.0, 72.0))
    decode_rates_hz: tuple[float, ...] = (50.0, 25.0)
    marble_bpm_ranges: tuple[tuple[float, float], ...] = ((55.0, 215.0), (55.0, 215.0))
    train_tracks: int | None = 150
    valid_tracks: int | None = 50
    layers: int | None = 3


@dataclass(frozen=True)
class ProbeFit:
    """How the probes of a task are trained.

    Attributes:
        hidden: 0 for a linear head; 512 for MARBLE's Linear-ReLU-Dropout-Linear.
        readouts: what is probed: every layer by itself, and all of them together in one or more ways (heads.py).
        learning_rates: one probe each, for every layer or readout and seed.
        batch_size: slices of a step.
        accumulate: batches of the loader whose gradients add up to one step, each divided by this number, also in the
            last and smaller group of an epoch. Over batches of the loader upstream's monitors are means.
        patience: epochs without a better monitor after which a probe stops.
        plateau_factor: protocol marble: what the rate is multiplied with on a plateau.
        plateau_patience: protocol marble: epochs without a better monitor that are borne before that.
        batch_mean_monitor: protocol marble: the monitor is the mean of the metric over batches of slices, as upstream
            logs it, not the metric of all items.
        standardise: protocol clean: features are centred and scaled per dimension with statistics of the training
            split, so that one set of learning rates suits encoders of any scale. Protocol marble never does.
    """

    hidden: int = 0
    dropout: float = 0.0
    readouts: tuple[Readout, ...] = ("layers",)
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1)
    max_epochs: int = 100
    batch_size: int = 64
    accumulate: int = 1
    patience: int = 8
    plateau_factor: float = 0.5
    plateau_patience: int = 5
    batch_mean_monitor: bool = True
    standardise: bool = True

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of accumulate={self.accumulate}, so a step would end "
                "inside a batch of the loader"
            )

    @property
    def loader_batch(self) -> int:
        """Slices in a batch of the reference's loader."""
        return self.batch_size // self.accumulate

    def readouts_of(self, layers: int) -> tuple[Readout, ...]:
        """Returns the readouts of an encoder with so many layers: one layer is all there is to read out of one."""
        return self.readouts if layers > 1 else ("layers",)

    @property
    def head(self) -> str:
        """The head's name in results."""
        return f"mlp{self.hidden}" if self.hidden else "linear"


@dataclass(frozen=True)
class Task:
    """One row of the benchmark.

    Attributes:
        title: what a table calls it.
        follows: the MARBLE task whose measure it takes.
        manifest: file name of the track list in the corpus folder.
        labels: keys of a track's labels; a track without all of them is left out.
        transforms: of each label, regression only; "log" for what people judge by ratios and what has a long tail.
            Both this and "identity" are standardised on the training split, "raw" is not.
        classes: fixed order of the classes; empty means those of the training split.
        class_order: of classes that come from the training split: sorted, or as they first appear in it.
        metric: the reported one. All metrics are larger-is-better and live in `metrics.py`.
        selection: metric on validation that chooses layer and learning rate.
        aggregate: slices whose logits are averaged into one item; frame tasks score slices as they are.
        pooling: what is averaged: logits, logits and their mean rounded to bf16, or softmax probabilities.
        unit: what the bootstrap resamples: pieces (groups), or tracks where no two share one.
        source: MARBLE's manifests; None for a track list of ours.
        channels: of multi-channel files: in training, and elsewhere.
        header_facts: sample rate, length and channels come from the files, not from the manifest.
        drop_leaks: a group in several splits stays in the last of train, valid, test only.
        clean: fields that protocol clean has otherwise; the row itself is what protocol marble does.
    """

    name: str
    title: str
    follows: str
    target: TargetKind
    labels: tuple[str, ...]
    metric: str
    selection: str
    extra_metrics: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    class_order: Literal["sorted", "first_seen"] = "sorted"
    transforms: tuple[Transform, ...] = ()
    manifest: str = "tracks.jsonl"
    clips: Clips = field(default_factory=Clips)
    frames: Frames | None = None
    aggregate: Literal["track", "slice"] = "track"
    pooling: Literal["logits", "logits_bf16", "probabilities"] = "logits"
    unit: Literal["group", "track"] = "group"
    fit: ProbeFit = field(default_factory=ProbeFit)
    source: TaskSource | None = None
    channels: tuple[ChannelMode, ChannelMode] = ("mix", "mix")
    header_facts: bool = False
    drop_leaks: bool = False
    clean: Mapping[str, Any] = field(default_factory=dict)

    @property
    def list_name(self) -> str:
        """The name of its track list among those of an evaluation."""
        return self.manifest if self.source is None else self.source.name

    def under(self, protocol: Protocol) -> "Task":
        """Returns the row as a protocol has it."""
        return replace(self, **self.clean, clean={}) if protocol == "clean" else replace(self, clean={})

    @property
    def by_frame(self) -> bool:
        """Whether a probe speaks about every frame (a local task) and not about whole slices (a global one)."""
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
        selection="key_weighted",
        extra_metrics=("accuracy",),
    ),
    Task(
        name="beats",
        title="Beats",
        follows="GTZANBeatTracking",
        target="frames",
        labels=("beats", "downbeats"),
        metric="beat_f1",
        selection="beat_f1",
        extra_metrics=("downbeat_f1",),
        clips=Clips(seconds=10.24),
        frames=Frames(),
        aggregate="slice",
        fit=ProbeFit(learning_rates=(3e-3, 1e-2, 3e-2), seeds=(0,), max_epochs=30, batch_size=8, patience=5),
    ),
    Task(
        name="instruments",
        title="Instruments",
        follows="MTGInstrument",
        target="multilabel",
        labels=("instruments",),
        metric="roc_auc",
        selection="roc_auc",
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
        selection="r2",
        extra_metrics=("r2_first", "r2_second"),
    ),
    Task(
        name="collection",
        title="Collection",
        follows="GTZANGenre",
        target="multiclass",
        labels=("collection",),
        metric="accuracy",
        selection="accuracy",
        extra_metrics=("balanced_accuracy",),
    ),
)


def select_tasks(names: Sequence[str], table: tuple[Task, ...] = TASKS) -> tuple[Task, ...]:
    """Returns the rows of a table that `names` asks for, in table order; "all" means every row.

    Raises:
        UserError: a name that no row has, with the nearest one.
    """
    known = {task.name: task for task in table}
    for name in names:
        if name != "all" and name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else "no task is near to it."
            raise UserError(f"no task is called {name!r}; {hint} Tasks: all, {', '.join(known)}")
    return tuple(task for task in table if "all" in names or task.name in names)
