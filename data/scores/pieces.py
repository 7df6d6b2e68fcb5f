"""A piece as integers: notes, beats and keys in ticks, independent of tempo, key and sound.

It is the result of parsing and the input of rendering, so it is cached.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

# 2^5 3^2 5 7, so that every common tuplet down to the 128th note is a whole number of ticks
TICKS_PER_QUARTER = 10080
FORMAT_VERSION = 1

ONSET, DURATION, PITCH, PART = range(4)
TICK, PERIOD, DOWNBEAT = range(3)


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
