"""Targets from labels: usable tracks of a task, its classes, and arrays of slices and items.

Class lists, and mean and scale of regression targets, are fitted on the training split alone.

Legend: N items or slices, C classes or outputs, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from distributed.marble.datasets.corpus import SPLITS, LabelledCorpus, LabelledTrack, Slice, cut, thin_tracks
from distributed.marble.metrics.beats import BEATS_BPM
from distributed.marble.tasks.chords import exact_frames, upstream_frames
from distributed.marble.tasks.tasks import ChannelMode, Protocol, Task
from pupujepa.errors import UserError

BEAT_NEIGHBOURS = 2  # frames on each side of an event with targets 1/2 and 1/4
BARS_BPM = (18.0, 72.0)
# protocol clean interpolates beats and bars to about these rates before decoding, so that no tempo is between two
# intervals; bars are long enough at 25 frames/s
DECODE_RATES_HZ = (50.0, 25.0)
Placed = Sequence[tuple[LabelledTrack, Slice]]


@dataclass(frozen=True)
class Events:
    """Reference times of frame tasks."""

    times_s: tuple[tuple[np.ndarray, ...], ...]  # for each item and channel, seconds from the slice's start
    frame_rate_hz: float
    bpm_ranges: tuple[tuple[float, float], ...]  # tempo range of the decoder, for each channel
    # interpolate each channel's activations to about this rate before decoding; None does not
    decode_rates_hz: tuple[float, ...] | None
    # protocol marble: upstream's frames of a slice, to which references are rounded; those beyond are lost. None uses
    # the times as annotated
    label_frames: int | None = None
    track_of_item: np.ndarray | None = None  # number of each item's track; None if no metric needs it


@dataclass(frozen=True)
class Targets:
    """Targets of slices or of items."""

    # class numbers [N], 0/1 [N, C], standardised outputs [N, C], activations in [0, 1] [N, T, C], or class numbers of
    # frames [N, T], -1 for ignored frames
    values: np.ndarray
    classes: tuple[str, ...] = ()
    events: Events | None = None

    def take(self, rows: np.ndarray) -> "Targets":
        """Returns the targets of some rows."""
        events = self.events
        if events is not None:
            tracks = None if events.track_of_item is None else events.track_of_item[rows]
            events = replace(events, times_s=tuple(events.times_s[int(r)] for r in rows), track_of_item=tracks)
        return Targets(self.values[rows], self.classes, events)


@dataclass(frozen=True)
class LabelSpace:
    """Classes, and mean and standard deviation of each regression output, fitted on the training split."""

    classes: tuple[str, ...] = ()
    mean_C: tuple[float, ...] = ()
    std_C: tuple[float, ...] = ()


@dataclass(frozen=True)
class Split:
    """Slices of one split that a task uses, grouped into items."""

    tracks: tuple[LabelledTrack, ...]
    slices: tuple[Slice, ...]
    item_of_slice: np.ndarray  # item number of each slice; items are numbered in order of appearance
    units: tuple[str, ...]  # for each item, the unit that the bootstrap resamples
    left_out: int  # number of tracks without a usable label
    too_short: int  # number of tracks too short for a single slice
    # for each slice, the same window of equally likely channels; training draws one every epoch. Empty if there is one
    # channel each.
    variants: tuple[tuple[Slice, ...], ...] = ()

    @property
    def every_slice(self) -> tuple[Slice, ...]:
        """All slices that need features, without duplicates."""
        return tuple(dict.fromkeys([*self.slices, *(v for of_slice in self.variants for v in of_slice)]))


@dataclass(frozen=True)
class TaskData:
    """One task on one corpus: its three splits and its label space."""

    task: Task
    space: LabelSpace
    splits: dict[str, Split]


def prepare_targets(task: Task, corpus: LabelledCorpus) -> TaskData:
    """Selects tracks and slices and fits the label space on the training split.

    Raises:
        UserError: a split has no labelled track long enough, or all its labels are equal.
    """
    space = _fit_space(task, [t for t in corpus.of_split("train") if _is_labelled(task, t)])
    splits = {name: _select(task, space, corpus.of_split(name), name) for name in SPLITS}
    for name, split in splits.items():
        if not split.slices:
            raise UserError(
                f"task {task.name!r} has no labelled item in the {name} split "
                f"({split.left_out} tracks without a usable {' and '.join(task.labels)}, {split.too_short} shorter "
                f"than {task.clips.min_ratio * task.clips.seconds:g} s); "
                "use a corpus with more pieces, or leave the task out with --tasks"
            )
        _refuse_constant_labels(task, space, split, name)
    return TaskData(task, space, splits)


def slice_targets(
    data: TaskData,
    split: Split,
    *,
    protocol: Protocol,
    frames: tuple[int, float] | None,  # per slice and per second, of the encoder; frame tasks only
) -> Targets:
    """Returns the targets of every slice of a split."""
    tracks = {t.uid: t for t in split.tracks}
    rows = [(tracks[s.uid], s) for s in split.slices]
    task = data.task
    if task.frames is None:
        return Targets(np.stack([_encode(task, data.space, track) for track, _ in rows]), data.space.classes)
    if frames is None:
        raise ValueError(f"task {task.name!r} needs an encoder with frames")
    if task.target == "frame_classes":
        return Targets(_chord_classes(task, rows, frames, protocol=protocol), data.space.classes)
    return _event_targets(task, rows, frames, protocol=protocol)


def item_targets(of_slices: Targets, split: Split) -> Targets:
    """Returns the targets of items, taken from each item's first slice."""
    # np.unique sorts the item numbers, so its i-th row is item i
    _, first_slice_of_item = np.unique(split.item_of_slice, return_index=True)
    return of_slices.take(first_slice_of_item)


def _is_labelled(task: Task, track: LabelledTrack) -> bool:
    if any(track.labels.get(name) is None for name in task.labels):
        return False
    for name in task.labels:
        _refuse_wrong_kind(task, track.uid, name, track.labels[name])
    # a logarithm needs positive labels; tasks without transforms skip this loop
    return all(kind != "log" or track.labels[name] > 0 for name, kind in zip(task.labels, task.transforms))


def _refuse_wrong_kind(task: Task, uid: str, name: str, label: Any) -> None:
    """Raises UserError unless a label is of the task's kind, before hours of computing features."""
    several = task.target in ("multilabel", "frames")
    is_text = task.target in ("multiclass", "multilabel")
    kind, expected = (str, "text") if is_text else (Real, "numbers" if several else "a number")
    values = label if several and isinstance(label, list | tuple) else [label]
    is_right = all(isinstance(v, kind) and not isinstance(v, bool) for v in values)
    if task.target == "frame_classes" or (is_right and (values is label or not several)):
        return
    raise UserError(
        f"{uid}: the label {name}={str(label)[:40]} is not {'a list of ' if several else ''}{expected}, so "
        f"{task.name!r} cannot use it; correct the list"
    )


def _fit_space(task: Task, tracks: Sequence[LabelledTrack]) -> LabelSpace:
    if task.target == "multiclass":
        return LabelSpace(classes=task.classes or tuple(sorted({t.labels[task.labels[0]] for t in tracks})))
    if task.target == "multilabel":
        # a dict keeps the order of first appearance, for class_order="first_seen"
        present = dict.fromkeys(c for t in tracks for c in t.labels[task.labels[0]])
        return LabelSpace(classes=task.classes or tuple(sorted(present) if task.class_order == "sorted" else present))
    if task.target == "frame_classes":
        return LabelSpace(classes=task.classes)
    if task.target == "regression" and tracks and "raw" not in task.transforms:
        values_NC = np.array([_outputs(task, t) for t in tracks])
        spread_C = np.maximum(values_NC.std(axis=0), 1e-6)  # a constant output must not divide by zero
        return LabelSpace(
            classes=task.labels, mean_C=tuple(values_NC.mean(axis=0).tolist()), std_C=tuple(spread_C.tolist())
        )
    outputs = len(task.labels)
    return LabelSpace(classes=task.labels, mean_C=(0.0,) * outputs, std_C=(1.0,) * outputs)


def _refuse_constant_labels(task: Task, space: LabelSpace, split: Split, name: str) -> None:
    """Raises UserError if all labels are equal, before hours of computing features."""
    if task.frames is not None:
        return
    values = np.stack([_encode(task, space, t) for t in split.tracks])
    columns = values.reshape(len(values), -1)
    if np.all(columns == columns[0]):
        raise UserError(
            f"task {task.name!r}: all {len(values)} labelled tracks of the {name} split have the same "
            f"{' and '.join(task.labels)}; use a corpus with more pieces, or leave the task out with --tasks"
        )


def _select(task: Task, space: LabelSpace, tracks: Sequence[LabelledTrack], name: str) -> Split:
    usable = [t for t in tracks if _is_labelled(task, t)]
    if task.target == "multiclass":  # classes that training lacks cannot be learned
        usable = [t for t in usable if t.labels[task.labels[0]] in space.classes]
    long_enough = [t for t in usable if cut(t, task.clips)]
    kept = long_enough
    # frames of all layers are large: training and validation use some tracks, the test split always all
    if task.frames is not None and name != "test":
        kept = thin_tracks(long_enough, task.frames.train_tracks if name == "train" else task.frames.valid_tracks)
    training = name == "train"
    mode = task.channels[0 if training else 1]
    variants = [tuple(replace(s, channel=c) for c in _channels(t, mode)) for t in kept for s in cut(t, task.clips)]
    slices = [v[0] for v in variants]  # the first variant names the slice; see `_channels`
    unit_of = {t.uid: t.group for t in kept}  # the bootstrap draws pieces
    item_of = {t.uid: t.item or t.uid for t in kept}
    # an item is a track (or the tracks of one `item`), or a single slice
    names = [(s.uid, s.index) if task.by_frame else (item_of[s.uid], 0) for s in slices]
    numbers = {item: i for i, item in enumerate(dict.fromkeys(names))}  # in order of appearance
    unit_of_item = {numbers[n]: unit_of[s.uid] for n, s in zip(names, slices, strict=True)}
    return Split(
        tracks=tuple(kept),
        slices=tuple(slices),
        item_of_slice=np.array([numbers[n] for n in names], dtype=np.int64),
        units=tuple(unit_of_item[i] for i in range(len(numbers))),
        left_out=len(tracks) - len(usable),
        too_short=len(usable) - len(long_enough),
        variants=tuple(variants) if any(len(v) > 1 for v in variants) else (),
    )


def _channels(track: LabelledTrack, mode: ChannelMode) -> tuple[str, ...]:
    """Returns the equally likely channels of a track, the mix first; a channel repeats to be more likely."""
    single = tuple(str(c) for c in range(track.num_channels))
    if mode == "mix" or len(single) == 1:
        return ("mix",)
    if mode == "first":
        return ("0",)
    if mode == "random":
        return ("mix", *single)
    return (*("mix",) * len(single), *single)  # random_half_mix


def _encode(task: Task, space: LabelSpace, track: LabelledTrack) -> np.ndarray:
    if task.target == "multiclass":
        return np.array(space.classes.index(track.labels[task.labels[0]]), dtype=np.int64)
    if task.target == "multilabel":
        present = set(track.labels[task.labels[0]])
        if task.classes and not present <= set(task.classes):
            raise UserError(
                f"{track.uid}: {sorted(present - set(task.classes))} are not among the {len(task.classes)} classes of "
                f"task {task.name!r}, so these labels would be lost; fetch the manifest again"
            )
        return np.array([c in present for c in space.classes], dtype=np.float32)
    return ((_outputs(task, track) - space.mean_C) / space.std_C).astype(np.float32)


def _outputs(task: Task, track: LabelledTrack) -> np.ndarray:
    values = [float(track.labels[name]) for name in task.labels]
    return np.array([np.log(v) if kind == "log" else v for v, kind in zip(values, task.transforms, strict=True)])


def _event_targets(task: Task, rows: Placed, frames: tuple[int, float], *, protocol: Protocol) -> Targets:
    """Returns activations [N, T, C], and the events behind them, in seconds from each slice's start."""
    upstream, seconds, (num_frames, rate_hz) = protocol == "marble", task.clips.seconds, frames
    times = tuple(
        tuple(_within(track.labels[name], track.start_s(s.index, seconds), seconds) for name in task.labels)
        for track, s in rows
    )
    widen = partial(widened, frames=num_frames, frame_rate_hz=rate_hz, neighbours=BEAT_NEIGHBOURS)
    # an encoder may give one frame less than upstream's labels have, such as MERT 749 of 750
    label_frames = int(rate_hz * seconds) if upstream else None
    numbers = {uid: n for n, uid in enumerate(dict.fromkeys(t.uid for t, _ in rows))}
    events = Events(
        times,
        rate_hz,
        bpm_ranges=(BEATS_BPM, BEATS_BPM) if upstream else (BEATS_BPM, BARS_BPM),  # upstream decodes bars like beats
        decode_rates_hz=None if upstream else DECODE_RATES_HZ,
        label_frames=label_frames,
        track_of_item=np.array([numbers[t.uid] for t, _ in rows]),
    )
    marked = times
    if label_frames is not None:  # upstream drops an event that rounds past the end, neighbours included
        marked = tuple(tuple(t[np.round(t * rate_hz) < label_frames] for t in channels) for channels in times)
    values_NTC = np.stack([np.stack([widen(t) for t in channels], axis=1) for channels in marked])
    return Targets(values_NTC, task.labels, events)


def widened(times_s: np.ndarray, *, frames: int, frame_rate_hz: float, neighbours: int) -> np.ndarray:
    """Returns activations [T]: 1 at an event's frame, halved per frame, 0 beyond `neighbours` frames."""
    activation_T = np.zeros(frames, dtype=np.float32)
    centres = np.round(np.asarray(times_s) * frame_rate_hz).astype(np.int64)
    for offset in range(-neighbours, neighbours + 1):
        at = centres + offset
        at = at[(at >= 0) & (at < frames)]
        # the nearest of two close events counts; `at` may repeat a frame, which plain indexing would drop
        np.maximum.at(activation_T, at, np.float32(0.5 ** abs(offset)))
    return activation_T


def _chord_classes(task: Task, rows: Placed, frames: tuple[int, float], *, protocol: Protocol) -> np.ndarray:
    """Returns the class of every frame, [N, T]; -1 for frames that are ignored."""
    [name], (num_frames, rate_hz) = task.labels, frames
    rule = upstream_frames if protocol == "marble" else exact_frames
    values_NT = np.empty((len(rows), num_frames), dtype=np.int64)
    for row, (track, s) in enumerate(rows):
        start_s = track.start_s(s.index, task.clips.seconds)
        values_NT[row] = rule(track.labels[name], start_s=start_s, frames=num_frames, frame_rate_hz=rate_hz)
        if protocol == "clean":  # ignores the padding after the end of a track; upstream gives it the last chord
            values_NT[row, max(0, int(np.ceil((track.duration_s - start_s) * rate_hz))) :] = -1
    return values_NT


def _within(times_s: Sequence[float], start_s: float, duration_s: float) -> np.ndarray:
    relative = np.asarray(times_s, dtype=np.float64) - start_s
    return relative[(relative >= 0) & (relative < duration_s)]
