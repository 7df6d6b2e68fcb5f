"""Chord labels in Harte's syntax, read by mir_eval, as 25 classes: one for each frame of a slice.

There are two rules for frames. `exact_frames` follows the annotation: a frame has the chord of the segment around it.
`upstream_frames` is MARBLE v2's rule: a segment lasts until the next one starts, and its annotated end is ignored; "no
chord" becomes the chord before it, except at the start of the slice.

Legend: T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import mir_eval
import numpy as np

from pupujepa.errors import UserError

_ROOTS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
CHORD_CLASSES = (*(f"{root}:{mode}" for mode in ("maj", "min") for root in _ROOTS), "N")
NO_CHORD = 24
IGNORED = -1
_UNKNOWN = "X"


@dataclass(frozen=True)
class ChordSegment:
    """A chord from `start_s` to `end_s` of a track."""

    start_s: float
    end_s: float
    label: str


def majmin_class(label: str, *, origin: str = "chord") -> int:
    """Returns the class of a chord: 0-11 major triads, 12-23 minor ones, 24 no chord, else -1.

    Extended chords such as sevenths count by their triad. A chord that contains both triads is -1.

    Raises:
        UserError: the label is not in Harte's syntax.
    """
    try:
        root, bitmap_12, _ = mir_eval.chord.encode(label)
    except mir_eval.chord.InvalidChordException as error:
        raise UserError(
            f"{origin}: the chord {label!r} cannot be read ({error}), so its frames have no class; "
            "write it in Harte's syntax, such as C:maj7 or N"
        ) from error
    if root < 0:
        return NO_CHORD
    major, minor = (bool(bitmap_12[[0, third, 7]].all()) for third in (4, 3))
    if major == minor:
        return IGNORED
    return int(root) if major else int(root) + 12


def upstream_frames(
    segments: Sequence[ChordSegment], *, start_s: float, frames: int, frame_rate_hz: float
) -> np.ndarray:
    """Returns the classes [T] that MARBLE v2 gives the frames of a slice."""
    times_T = start_s + np.arange(frames) / frame_rate_hz
    starts = [s.start_s for s in segments]  # of the whole track, in order
    first, stop = np.searchsorted(starts, (start_s, start_s + frames / frame_rate_hz))  # chords that begin in the slice
    own = [(s.start_s, majmin_class(s.label)) for s in segments[first:stop]]
    if not own or own[0][0] > start_s:
        # the last chord before the slice continues, even if its annotated end has passed
        own.insert(0, (start_s, majmin_class(segments[first - 1].label) if first else NO_CHORD))
    begins, classes = zip(*own, strict=True)
    # upstream replaces N by the label before it, which may itself be N: one step back, not repeated
    shown = [classes[0], *(previous if c == NO_CHORD else c for previous, c in pairwise(classes))]
    return np.array(shown, dtype=np.int64)[np.searchsorted(begins, times_T, side="right") - 1]


def exact_frames(segments: Sequence[ChordSegment], *, start_s: float, frames: int, frame_rate_hz: float) -> np.ndarray:
    """Returns the classes [T] of the segments at the frames' times; -1 without a segment or for label X."""
    times_T = start_s + np.arange(frames) / frame_rate_hz
    classes_T = np.full(frames, IGNORED, dtype=np.int64)
    for segment in segments:
        inside_T = (times_T >= segment.start_s) & (times_T < segment.end_s)
        if segment.label != _UNKNOWN and inside_T.any():
            classes_T[inside_T] = majmin_class(segment.label)
    return classes_T
