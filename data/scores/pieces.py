"""A piece as integers: notes, beats and keys in ticks, independent of tempo, key and sound.

It is the result of parsing and the input of rendering, so it is cached. Here are also the names of keys, and the key of
a set of notes.
"""

import functools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

# 2^5 3^2 5 7, so that every common tuplet down to the 128th note is a whole number of ticks
TICKS_PER_QUARTER = 10080
FORMAT_VERSION = 1

ONSET, DURATION, PITCH, PART = range(4)
TICK, PERIOD, DOWNBEAT = range(3)


TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
MODES = ("major", "minor")

# (major, minor), each from the tonic upwards. Temperley's revision of the probe-tone ratings (The Cognition of Basic
# Musical Structures, 2001, as in the Humdrum toolkit) and Aarden's counts in folk songs (Dynamic Melodic Expectancy,
# 2003). The first fits tunes better, the second chorales and quartets; their mean fits both.
_TEMPERLEY = (
    (5.0, 2.0, 3.5, 2.0, 4.5, 4.0, 2.0, 4.5, 2.0, 3.5, 1.5, 4.0),
    (5.0, 2.0, 3.5, 4.5, 2.0, 4.0, 2.0, 4.5, 3.5, 2.0, 1.5, 4.0),
)
_AARDEN = (
    (17.766, 0.146, 14.927, 0.160, 19.805, 11.359, 0.291, 22.062, 0.146, 8.155, 0.233, 4.951),
    (18.265, 0.738, 14.050, 16.860, 0.702, 14.436, 0.702, 18.616, 4.566, 1.932, 7.376, 1.756),
)


class UnusableScoreError(ValueError):
    """A score that cannot become a piece; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Piece:
    """One tune, movement or section.

    Attributes:
        uid: unique, and safe as a file name.
        collection: its row in the catalogue.
        work: pieces of one collection with equal, non-empty names are of one work.
        notes: int64 [notes, 4]: onset, duration (ticks), MIDI pitch, part; sorted by onset, part, pitch.
        beats: int64 [beats, 3]: tick, ticks to the next beat of this metre, 1 for a downbeat; sorted; [0, 3] without a
            usable metre.
        unmetred: (begin, end) ticks of passages without determined beats.
        keys: (start tick, declared key or None); a declared tonic without a mode is "C ?".
        length: ticks after which the piece can repeat without breaking the metre.
    """

    uid: str
    collection: str
    title: str
    work: str
    notes: np.ndarray
    beats: np.ndarray
    unmetred: tuple[tuple[int, int], ...]
    keys: tuple[tuple[int, str | None], ...]
    length: int

    @property
    def parts(self) -> int:
        """Number of parts, each played by one instrument."""
        return int(self.notes[:, PART].max()) + 1

    @property
    def beat_period(self) -> int:
        """Ticks of the most frequent beat; a quarter without beats."""
        if not len(self.beats):
            return TICKS_PER_QUARTER
        periods, counts = np.unique(self.beats[:, PERIOD], return_counts=True)
        return int(periods[np.argmax(counts)])


def piece_to_json(piece: Piece) -> str:
    """Returns a piece as JSON, for `piece_from_json`."""
    fields: dict[str, Any] = {name: getattr(piece, name) for name in Piece.__dataclass_fields__}
    fields |= {"notes": piece.notes.tolist(), "beats": piece.beats.tolist()}
    return json.dumps(fields, separators=(",", ":"))


def piece_from_json(text: str) -> Piece:
    """Returns the piece of `piece_to_json`. Raises ValueError, KeyError or TypeError for other text."""
    fields = json.loads(text)
    fields["notes"] = np.array(fields["notes"], dtype=np.int64).reshape(-1, 4)
    fields["beats"] = np.array(fields["beats"], dtype=np.int64).reshape(-1, 3)
    fields["unmetred"] = tuple((begin, end) for begin, end in fields["unmetred"])
    fields["keys"] = tuple((tick, key) for tick, key in fields["keys"])
    return Piece(**fields)


def key_name(tonic: int, mode: str) -> str:
    """Returns a key in the spelling of `mir_eval.key`, such as "Eb minor"; tonic is a pitch class, 0 = C."""
    assert mode in MODES, mode
    return f"{TONICS[tonic % 12]} {mode}"


def tonic_of(key: str) -> int:
    """Returns the pitch class of a key's tonic."""
    return TONICS.index(key.split(" ")[0])


def mode_of(key: str) -> str:
    """Returns "major" or "minor"."""
    return key.split(" ")[1]


def transpose_key(key: str, semitones: int) -> str:
    """Returns the key `semitones` higher."""
    return key_name(tonic_of(key) + semitones, mode_of(key))


def estimate_key(pitches: np.ndarray, *, weights: np.ndarray) -> str | None:
    """Returns the key whose profile fits weighted MIDI pitches best, or None if all classes are equal."""
    histogram = np.bincount(np.asarray(pitches) % 12, weights=weights, minlength=12)
    if np.ptp(histogram) == 0:
        return None
    histogram = (histogram - histogram.mean()) / histogram.std()  # so that the product is a correlation
    best = int(np.argmax(_profiles() @ histogram))
    return key_name(best % 12, MODES[best // 12])


@functools.cache
def _profiles() -> np.ndarray:
    rows = np.zeros((24, 12))  # 12 major keys, then 12 minor keys
    for table in (_TEMPERLEY, _AARDEN):
        for mode, profile in enumerate(np.asarray(table)):
            standard = (profile - profile.mean()) / profile.std()
            rows[12 * mode : 12 * mode + 12] += [np.roll(standard, tonic) for tonic in range(12)]
    return rows
