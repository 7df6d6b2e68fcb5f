"""Frame targets from times: beat activations and the chord of every frame, slice by slice.

Legend: N slices, T frames, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from distributed.marble.datasets.corpus import LabelledTrack, Slice
from distributed.marble.tasks.chords import exact_frames, upstream_frames
from distributed.marble.tasks.tasks import Frames, Protocol, Task

Placed = Sequence[tuple[LabelledTrack, Slice]]


@dataclass(frozen=True)
class FrameGrid:
    """Frames per slice and frames per second of an encoder."""

    frames: int
    rate_hz: float


def event_times(task: Task, rows: Placed) -> tuple[tuple[np.ndarray, ...], ...]:
    """Returns the events of each slice and label, in seconds from the slice's start."""
    seconds = task.clips.seconds
    return tuple(
        tuple(_within(track.labels[name], track.start_s(s.index, seconds), seconds) for name in task.labels)
        for track, s in rows
    )


def frame_activations(times: Sequence[Sequence[np.ndarray]], rule: Frames, grid: FrameGrid) -> np.ndarray:
    """Returns activations [N, T, C]; see `widened`."""
    widen = partial(widened, frames=grid.frames, frame_rate_hz=grid.rate_hz, neighbours=rule.neighbours)
    return np.stack([np.stack([widen(t) for t in channels], axis=1) for channels in times])


def widened(times_s: np.ndarray, *, frames: int, frame_rate_hz: float, neighbours: int) -> np.ndarray:
    """Returns activations [T]: 1 at an event's frame, halved per frame of distance.

    They are 0 beyond `neighbours` frames.
    """
    activation_T = np.zeros(frames, dtype=np.float32)
    centres = np.round(np.asarray(times_s) * frame_rate_hz).astype(np.int64)
    for offset in range(-neighbours, neighbours + 1):
        at = centres + offset
        at = at[(at >= 0) & (at < frames)]
        # the nearest of two close events counts; `at` may repeat a frame, which plain indexing would drop
        np.maximum.at(activation_T, at, np.float32(0.5 ** abs(offset)))
    return activation_T


def chord_classes(task: Task, rows: Placed, grid: FrameGrid, *, protocol: Protocol) -> np.ndarray:
    """Returns the class of every frame, [N, T]; -1 for frames that are ignored.

    Protocol clean ignores frames after the end of the track (padding); upstream gives them the last chord.
    """
    [name] = task.labels
    rule = upstream_frames if protocol == "marble" else exact_frames
    values_NT = np.empty((len(rows), grid.frames), dtype=np.int64)
    for row, (track, s) in enumerate(rows):
        start_s = track.start_s(s.index, task.clips.seconds)
        values_NT[row] = rule(track.labels[name], start_s=start_s, frames=grid.frames, frame_rate_hz=grid.rate_hz)
        if protocol == "clean":
            values_NT[row, max(0, int(np.ceil((track.duration_s - start_s) * grid.rate_hz))) :] = -1
    return values_NT


def _within(times_s: Sequence[float], start_s: float, duration_s: float) -> np.ndarray:
    relative = np.asarray(times_s, dtype=np.float64) - start_s
    return relative[(relative >= 0) & (relative < duration_s)]
