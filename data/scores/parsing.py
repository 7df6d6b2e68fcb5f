"""Parsing of a score, with music21, to a `Piece`.

Repeats are played once: labels only need notes and bars that agree.
"""

import gc
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError
from zipfile import BadZipFile

import numpy as np

from data.scores.catalogue import Candidate, read_text, split_tunes
from data.scores.metre import BarGrid, Measure, beat_grid, beat_quarters
from data.scores.pieces import MODES, TICKS_PER_QUARTER, TONICS, Piece, UnusableScoreError

MIN_NOTES = 16
MIN_QUARTERS = 12
MAX_PARTS = 16  # one synthesiser channel each
_AUDIBLE = range(26, 99)
_MAX_UNMETRED_SHARE = 0.2

# (onset, duration, pitch) in ticks
Note = tuple[int, int, int]


def parse_piece(candidate: Candidate, corpus: Path) -> Piece:
    """Returns one piece.

    Raises:
        UnusableScoreError: the file cannot be read, or the piece cannot be played and labelled.
    """
    with _one_collection():
        score = _read_score(candidate, corpus)
        parts = list(score.parts)
        sounding = [notes for part in parts if (notes := _clean(_merge_ties(_notes(part))))]
        rows = [(*note, index) for index, notes in enumerate(sounding) for note in notes]
        _require_music(rows, parts=len(sounding))
        array = np.array(sorted(rows, key=lambda n: (n[0], n[3], n[2])), dtype=np.int64)
        end = int((array[:, 0] + array[:, 1]).max())
        grid = _grid(parts, end)
        title = score.metadata.bestTitle if score.metadata is not None else None
        return Piece(
            uid=candidate.uid,
            collection=candidate.collection.name,
            title=re.sub(r"\s+", " ", title or "").strip() or candidate.uid,
            work=candidate.work,
            notes=array,
            beats=np.array(grid.beats, dtype=np.int64).reshape(-1, 3),
            unmetred=grid.unmetred,
            keys=_keys(parts, witness=candidate.collection.key_witness),
            length=max(grid.length, end),
        )


@contextmanager
def _one_collection() -> Iterator[None]:
    """Collects garbage once, at the end, and only of objects made inside.

    music21 builds graphs of objects that live until the piece is parsed; repeated collection takes a third of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    gc.freeze()  # hides older objects from the collection
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        if enabled:
            gc.enable()


def _read_score(candidate: Candidate, corpus: Path) -> Any:
    from music21 import converter
    from music21.exceptions21 import Music21Exception

    path = corpus / candidate.path
    # errors of the parsers on malformed input
    malformed = (
        Music21Exception,
        ParseError,
        BadZipFile,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if candidate.tune is None:
                return converter.parse(path, forceSource=True, storePickle=False)
            tune = split_tunes(read_text(path))[candidate.tune]
            return converter.parse(tune, format="abc", forceSource=True, storePickle=False)
    except malformed as error:
        raise UnusableScoreError(f"music21 cannot read it: {type(error).__name__}: {error}") from error


def _require_music(notes: list[tuple[int, int, int, int]], *, parts: int) -> None:
    if len(notes) < MIN_NOTES:
        raise UnusableScoreError(f"{len(notes)} notes, fewer than {MIN_NOTES}")
    if parts > MAX_PARTS:
        raise UnusableScoreError(f"{parts} parts, more than {MAX_PARTS}")
    end = max(onset + duration for onset, duration, _, _ in notes)
    if end < MIN_QUARTERS * TICKS_PER_QUARTER:
        raise UnusableScoreError(f"{end / TICKS_PER_QUARTER:g} quarters long, fewer than {MIN_QUARTERS}")
    lowest, highest = min(n[2] for n in notes), max(n[2] for n in notes)
    if lowest not in _AUDIBLE or highest not in _AUDIBLE:
        raise UnusableScoreError(f"pitches {lowest} to {highest} are outside {_AUDIBLE[0]} to {_AUDIBLE[-1]}")


def _notes(part: Any) -> Iterator[tuple[int, int, int, str]]:
    """Yields (onset, duration, sounding pitch, tie); tie is "start", "continue", "stop" or ""."""
    shift = _transposition(part)
    measures = part.getElementsByClass("Measure")
    inside = [(measure.offset, measure) for measure in measures]
    inside += [(measure.offset + voice.offset, voice) for measure in measures for voice in measure.voices]
    elements = ((start + element.offset, element) for start, container in inside for element in container.notesAndRests)
    for offset, element in elements:
        if not (element.isNote or element.isChord) or "Harmony" in element.classes or element.duration.isGrace:
            continue  # chord symbols are not played, and grace notes have no duration
        onset, duration = _ticks(offset), _ticks(element.quarterLength)
        for note in element.notes if element.isChord else (element,):
            if "Unpitched" not in note.classes and duration > 0:
                yield onset, duration, note.pitch.midi + shift, note.tie.type if note.tie else ""


def _transposition(part: Any) -> int:
    """Returns the semitones from written to sounding pitch."""
    instrument = part.getInstrument(returnDefault=False)
    transposition = instrument.transposition if instrument is not None else None
    return int(transposition.semitones) if transposition is not None else 0


def _merge_ties(notes: Iterator[tuple[int, int, int, str]]) -> list[Note]:
    merged: list[Note] = []
    tied: dict[int, int] = {}
    for onset, duration, pitch, tie in sorted(notes):
        begun = tied.pop(pitch, None) if tie in ("continue", "stop") else None
        if begun is not None and sum(merged[begun][:2]) == onset:  # adjacent: lengthen the tied note
            merged[begun] = (merged[begun][0], merged[begun][1] + duration, pitch)
        else:
            begun = len(merged)
            merged.append((onset, duration, pitch))
        if tie in ("start", "continue"):
            tied[pitch] = begun
    return merged


def _clean(notes: list[Note]) -> list[Note]:
    """Returns the notes for one instrument: a repeated key is released first."""
    cleaned: dict[tuple[int, int], Note] = {}
    previous: dict[int, tuple[int, int]] = {}
    for onset, duration, pitch in sorted(notes):
        before = cleaned.get(previous.get(pitch, (-1, -1)))
        if before is not None and before[0] < onset < before[0] + before[1]:
            cleaned[(before[0], pitch)] = (before[0], onset - before[0], pitch)
        cleaned[(onset, pitch)] = (onset, duration, pitch)  # of two at one time, the longer sorts last and stays
        previous[pitch] = (onset, pitch)
    return sorted(cleaned.values())


def _grid(parts: list[Any], end: int) -> BarGrid:
    """Returns the beats; none without a metre, if voices disagree, or if much of the score does not fit."""
    metres = [
        {
            _ticks(measure.offset): (signature.numerator, signature.denominator)
            for measure in part.getElementsByClass("Measure")
            for signature in measure.getElementsByClass("TimeSignature")
        }
        for part in parts
    ]
    unmetred = BarGrid((), ((0, end),), end)
    if not metres[0] or any(metre != metres[0] for metre in metres[1:]) or min(metres[0]) > 0:
        return unmetred
    starts = sorted({_ticks(measure.offset) for measure in parts[0].getElementsByClass("Measure")})
    measures = []
    numerator, denominator = metres[0][0]
    for start, stop in zip(starts, [*starts[1:], max(end, _ticks(parts[0].highestTime))], strict=True):
        numerator, denominator = metres[0].get(start, (numerator, denominator))
        nominal = _ticks(Fraction(4 * numerator, denominator))
        if stop > start:
            measures.append(Measure(start, stop - start, nominal, _ticks(beat_quarters(numerator, denominator))))
    if not measures:
        return unmetred
    grid = beat_grid(measures)
    lost = sum(stop - start for start, stop in grid.unmetred)
    return unmetred if lost > _MAX_UNMETRED_SHARE * end else grid


def _keys(parts: list[Any], *, witness: str) -> tuple[tuple[int, str | None], ...]:
    """Returns the declared keys; None for signatures that are neither major nor minor."""
    if witness == "none":
        return ((0, None),)
    sounding = next((part for part in parts if _transposition(part) == 0), None)
    if sounding is None:
        return ((0, None),)
    keys: dict[int, str | None] = {0: None}
    for measure in sounding.getElementsByClass("Measure"):
        for signature in measure.getElementsByClass("KeySignature"):
            mode = getattr(signature, "mode", None)
            open_mode = witness == "tonic" and mode == "major"
            keys[_ticks(measure.offset)] = (
                f"{TONICS[signature.tonic.pitchClass]} {'?' if open_mode else mode}" if mode in MODES else None
            )
    return tuple(sorted(keys.items()))


def _ticks(quarters: Any) -> int:
    return round(quarters * TICKS_PER_QUARTER)
