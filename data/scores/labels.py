"""Labels of a take, from its score; nothing here reads audio or guesses."""

from typing import Any

import numpy as np

from data.scores.catalogue import COLLECTIONS
from data.scores.pieces import DOWNBEAT, PERIOD, TICK, Piece, estimate_key, key_name, mode_of, tonic_of, transpose_key
from data.scores.programs import FAMILIES, family
from data.scores.takes import Take, notes_of, passes, seconds_per_tick

# a shorter part of a note at the edge of a window does not identify an instrument
_HEARD_S = 0.1
_CLASSES = frozenset(c.name for c in COLLECTIONS if c.is_class)


def label_take(piece: Piece, take: Take) -> dict[str, Any]:
    """Returns the labels of a take; None for those that the score does not determine."""
    beats_s, downbeats_s, tempo_bpm = _beats(piece, take)
    notes = notes_of(piece, take)
    heard = np.minimum(notes.end_s, take.seconds) - np.maximum(notes.onset_s, 0) >= _HEARD_S
    families = {family(take.programs[part]) for part in np.unique(notes.part[heard])}
    onsets = float(np.count_nonzero(notes.onset_s >= 0))  # each note of a chord counts
    return {
        "key": key_of(piece, take),
        "beats": beats_s,
        "downbeats": downbeats_s,
        "instruments": [name for name in FAMILIES if name in families],  # General MIDI families, in its order
        "tempo_bpm": tempo_bpm,
        "note_density_hz": round(onsets / take.seconds, 4),
        "collection": piece.collection if piece.collection in _CLASSES else None,
    }


def key_of(piece: Piece, take: Take) -> str | None:
    """Returns the key declared for all of the window, if the profile of its notes agrees, else None."""
    ends = [tick for tick, _ in piece.keys[1:]] + [piece.length]
    declared = {
        key
        for _, begin, end in passes(piece, take)
        for (tick, key), stop in zip(piece.keys, ends, strict=True)
        if max(begin, tick) < min(end, stop)  # the window hears some of it
    }
    if len(declared) != 1 or None in declared:
        return None
    notes = notes_of(piece, take)
    weights = np.minimum(notes.end_s, take.seconds) - np.maximum(notes.onset_s, 0)  # seconds inside the window
    heard = weights > 0
    estimate = estimate_key(notes.pitch[heard] - take.transposition, weights=weights[heard])  # as written
    tonic, mode = str(declared.pop()).split(" ")
    if estimate is None or tonic_of(estimate) != tonic_of(tonic) or mode not in ("?", mode_of(estimate)):
        return None
    return transpose_key(key_name(tonic_of(tonic), mode_of(estimate)), take.transposition)


def _beats(piece: Piece, take: Take) -> tuple[list[float] | None, list[float] | None, float | None]:
    """Returns beats, downbeats and tempo; no tempo if the beat changes, nothing if a passage is unmetred."""
    tick_s = seconds_per_tick(piece, take)
    found = []
    for shift, begin, end in passes(piece, take):
        if any(max(begin, start) < min(end, stop) for start, stop in piece.unmetred):
            return None, None, None
        inside = piece.beats[(piece.beats[:, TICK] >= begin) & (piece.beats[:, TICK] < end)]
        found.append(inside + np.array([shift - take.start, 0, 0]))
    beats = np.concatenate(found)
    beats = beats[beats[:, TICK] * tick_s < take.seconds]  # rounding may place a beat at the end
    if len(beats) < 2:
        return None, None, None
    times_s = np.round(beats[:, TICK] * tick_s, 6)
    periods = np.unique(beats[:, PERIOD])
    tempo_bpm = round(60 / (periods[0] * tick_s), 4) if len(periods) == 1 else None
    return times_s.tolist(), times_s[beats[:, DOWNBEAT] == 1].tolist(), tempo_bpm
