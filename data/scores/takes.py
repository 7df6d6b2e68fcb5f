"""Takes of a piece: window, tempo, key and instruments.

All takes have the same length. A piece shorter than its take is repeated, with the metre continued. A longer one starts
and ends anywhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.scores.pieces import DURATION, MODES, ONSET, PART, PITCH, Piece, mode_of, tonic_of
from data.scores.programs import draw_program
from pupujepa.randomness import generator

TEMPO_RANGE_BPM = (60.0, 160.0)
TRANSPOSITIONS = range(-5, 7)  # every residue of 12 once
PEAK_RANGE_DB = (-12.0, -1.0)
VELOCITY_RANGE = (72, 112)
# before the window, so that notes that sound at its start have their attack
LEAD_S = 2.0
_ATTEMPTS = 8
_MIN_ONSETS_PER_S = 0.5


@dataclass(frozen=True)
class Take:
    """One performance.

    Attributes:
        bpm: beats per minute of the piece's usual beat.
        start: tick of the first sample.
        transposition: semitones.
        programs: General MIDI program of each part.
        velocities: MIDI velocity of each part.
        peak_db: level of the loudest sample.
    """

    uid: str
    piece: str
    seconds: float
    bpm: float
    start: int
    transposition: int
    programs: tuple[int, ...]
    velocities: tuple[int, ...]
    peak_db: float


@dataclass(frozen=True, eq=False)
class Notes:
    """Notes in seconds from the start of a take, negative before it. All arrays are [notes]."""

    onset_s: np.ndarray
    end_s: np.ndarray
    pitch: np.ndarray
    part: np.ndarray


def draw_take(piece: Piece, index: int, *, seed: int, seconds: float) -> Take:
    """Returns take number `index` of a piece, untransposed and independent of other draws."""
    uid = f"{piece.uid}-take{index}"
    rng = generator(seed, "take", uid)
    low, high = np.log(TEMPO_RANGE_BPM)
    take = Take(
        uid=uid,
        piece=piece.uid,
        seconds=seconds,
        bpm=float(np.exp(rng.uniform(low, high))),  # uniform in log tempo
        start=0,
        transposition=0,
        programs=tuple(draw_program(rng) for _ in range(piece.parts)),
        velocities=tuple(int(v) for v in rng.integers(*VELOCITY_RANGE, size=piece.parts)),
        peak_db=float(rng.uniform(*PEAK_RANGE_DB)),
    )
    longest_start = piece.length - seconds / seconds_per_tick(piece, take)
    starts = rng.integers(0, int(longest_start) + 1 if longest_start > 0 else piece.length, size=_ATTEMPTS)
    windows = [replace(take, start=int(start)) for start in starts]
    # avoids nearly silent windows
    onsets = [int(np.count_nonzero(notes_of(piece, window).onset_s >= 0)) for window in windows]
    wanted = _MIN_ONSETS_PER_S * seconds
    return next((w for w, count in zip(windows, onsets) if count >= wanted), windows[onsets.index(max(onsets))])


def transpose_takes(takes: Sequence[Take], *, keys: Mapping[str, str | None], splits: Mapping[str, str], seed: int):
    """Yields the takes transposed, so that the keys of each mode are equally frequent within each split.

    Args:
        keys: of the untransposed takes by take uid; takes of an unknown key (None) move at random.
        splits: by take uid.
    """
    shifts: dict[str, int] = {}
    for split in sorted(set(splits.values())):
        for mode in MODES:
            members = [t.uid for t in takes if splits[t.uid] == split and (k := keys[t.uid]) and mode_of(k) == mode]
            members.sort(key=lambda uid: (generator(seed, "key", uid).random(), uid))
            tonics = generator(seed, "tonics", split, mode).permutation(12)  # which keys get one more
            for place, uid in enumerate(members):
                up = int(tonics[place % 12]) - tonic_of(keys[uid] or "")
                shifts[uid] = (up - TRANSPOSITIONS.start) % 12 + TRANSPOSITIONS.start
    for take in takes:
        at_random = int(generator(seed, "transposition", take.uid).choice(TRANSPOSITIONS))
        yield replace(take, transposition=shifts.get(take.uid, at_random))


def seconds_per_tick(piece: Piece, take: Take) -> float:
    """Returns the length of a tick at the take's tempo."""
    return 60 / (take.bpm * piece.beat_period)


def passes(piece: Piece, take: Take) -> Iterator[tuple[int, int, int]]:
    """Yields (shift, begin, end) for each repetition of the piece in the take.

    Tick t of the piece, begin <= t < end, sounds at take time (t + shift - start) * seconds_per_tick.
    """
    stop = take.start + round(take.seconds / seconds_per_tick(piece, take))
    for shift in range(0, stop, piece.length):  # one pass per repetition
        yield shift, max(0, take.start - shift), min(piece.length, stop - shift)


def notes_of(piece: Piece, take: Take) -> Notes:
    """Returns the notes from `LEAD_S` before the take to its end, sorted by onset, part and pitch."""
    tick_s = seconds_per_tick(piece, take)
    unrolled = [piece.notes + np.array([shift, 0, 0, 0]) for shift, _, _ in passes(piece, take)]
    notes = np.concatenate(unrolled)
    onset_s = (notes[:, ONSET] - take.start) * tick_s
    end_s = onset_s + notes[:, DURATION] * tick_s
    sounding = (end_s > -LEAD_S) & (onset_s < take.seconds)
    notes = notes[sounding]
    return Notes(onset_s[sounding], end_s[sounding], notes[:, PITCH] + take.transposition, notes[:, PART])
