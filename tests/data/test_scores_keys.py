"""Key names, and key labels from score and notes."""

from dataclasses import replace

import mir_eval
import numpy as np
import pytest

from data.scores.labels import key_of
from data.scores.pieces import MODES, TICKS_PER_QUARTER, Piece, estimate_key, key_name, mode_of, tonic_of, transpose_key
from data.scores.takes import TRANSPOSITIONS, Take, draw_take, transpose_takes

MAJOR = (0, 2, 4, 5, 7, 9, 11, 12, 7, 4, 0, 7, 4, 0, 0, 0)
MINOR = (0, 2, 3, 5, 7, 8, 11, 12, 7, 3, 0, 7, 3, 0, 0, 0)


def piece_in(
    declared: str | None, pitches: tuple[int, ...], *, uid: str = "made-up", later: str | None = None
) -> Piece:
    """Eight rounds of a phrase on middle C, a quarter each note; `later` is declared half-way."""
    notes = [(n * TICKS_PER_QUARTER, TICKS_PER_QUARTER, 60 + p, 0) for n, p in enumerate(pitches * 8)]
    keys = ((0, declared),) if later is None else ((0, declared), (64 * TICKS_PER_QUARTER, later))
    return Piece(
        uid=uid,
        collection="bach",
        title="",
        work="",
        notes=np.array(notes),
        beats=np.zeros((0, 3), dtype=np.int64),
        unmetred=(),
        keys=keys,
        length=128 * TICKS_PER_QUARTER,
    )


def take_of(piece: Piece, *, start_quarters: int = 0, transposition: int = 0) -> Take:
    start = start_quarters * TICKS_PER_QUARTER
    return Take("t", piece.uid, 16.0, 60.0, start, transposition, programs=(0,), velocities=(90,), peak_db=-3.0)


def test_all_names_are_those_of_mir_eval():
    for tonic in range(12):
        for mode in MODES:
            mir_eval.key.validate_key(key_name(tonic, mode))
            assert (tonic_of(key_name(tonic, mode)), mode_of(key_name(tonic, mode))) == (tonic, mode)


def test_transposition_moves_the_tonic_round_the_octave_and_keeps_the_mode():
    assert transpose_key("B minor", 2) == "Db minor"
    assert transpose_key("C major", -5) == "G major"
    assert all(transpose_key(transpose_key("Eb major", n), -n) == "Eb major" for n in TRANSPOSITIONS)


@pytest.mark.parametrize(("mode", "scale"), [("major", MAJOR), ("minor", MINOR)])
def test_the_profile_finds_the_key_of_a_scale_with_its_triad_in_all_keys(mode, scale):
    for up in range(12):
        pitches = 48 + up + np.array(scale)
        assert estimate_key(pitches, weights=np.ones(len(pitches))) == key_name(up, mode)


def test_a_key_needs_both_witnesses():
    agreeing, contradicted, silent = piece_in("C major", MAJOR), piece_in("G major", MINOR), piece_in(None, MAJOR)
    assert key_of(agreeing, take_of(agreeing)) == "C major"
    assert key_of(agreeing, take_of(agreeing, transposition=3)) == "Eb major"
    assert key_of(contradicted, take_of(contradicted)) is None
    assert key_of(silent, take_of(silent)) is None


def test_a_tonic_without_a_mode_takes_the_mode_of_the_notes():
    assert key_of(piece_in("C ?", MINOR), take_of(piece_in("C ?", MINOR))) == "C minor"
    assert key_of(piece_in("D ?", MINOR), take_of(piece_in("D ?", MINOR))) is None


def test_a_window_across_a_change_of_key_has_none():
    piece = piece_in("C major", MAJOR, later="F major")
    assert key_of(piece, take_of(piece)) == "C major"
    assert key_of(piece, take_of(piece, start_quarters=56)) is None


def test_takes_are_spread_evenly_over_the_keys_of_each_split():
    pieces = [piece_in("C major", MAJOR, uid=f"p{n}") for n in range(72)]
    takes = [draw_take(piece, 0, seed=4, seconds=10.0) for piece in pieces]
    splits = {take.uid: ("train", "valid", "test")[n % 3] for n, take in enumerate(takes)}
    moved = list(transpose_takes(takes, keys={t.uid: "C major" for t in takes}, splits=splits, seed=4))
    for split in ("train", "valid", "test"):
        keys = [transpose_key("C major", take.transposition) for take in moved if splits[take.uid] == split]
        assert {keys.count(key) for key in set(keys)} == {2} and len(set(keys)) == 12
    assert {take.transposition for take in moved} == set(TRANSPOSITIONS)
    assert [replace(take, transposition=0) for take in moved] == takes
