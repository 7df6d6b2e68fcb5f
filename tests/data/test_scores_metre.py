"""Bars and beats from measures, and beats of a take."""

import numpy as np
import pytest

from data.scores.labels import label_take
from data.scores.metre import Measure, beat_grid, beat_quarters
from data.scores.pieces import TICKS_PER_QUARTER, Piece, piece_from_json, piece_to_json
from data.scores.takes import Take

BEAT, BAR = 1, 4


def measures(*lengths: int) -> list[Measure]:
    starts = np.cumsum([0, *lengths]).tolist()
    return [Measure(start, length, BAR, BEAT) for start, length in zip(starts, lengths)]


def downbeats(*lengths: int) -> list[int]:
    return [tick for tick, _, down in beat_grid(measures(*lengths)).beats if down]


@pytest.mark.parametrize(
    ("numerator", "denominator", "quarters"),
    [
        (4, 4, 1),
        (3, 4, 1),
        (2, 2, 2),
        (4, 2, 2),
        (6, 8, 1.5),
        (9, 8, 1.5),
        (12, 8, 1.5),
        (3, 8, 1.5),
        (6, 4, 3),
        (5, 8, 0.5),
    ],
)
def test_the_beat_of_common_metres(numerator, denominator, quarters):
    assert beat_quarters(numerator, denominator) == quarters


def test_full_bars_begin_with_downbeats_and_repeat_at_once():
    grid = beat_grid(measures(4, 4))
    assert [beat[0] for beat in grid.beats] == list(range(8))
    assert downbeats(4, 4) == [0, 4]
    assert grid.length == 8 and not grid.unmetred


def test_a_pickup_has_no_downbeat_and_the_last_bar_makes_up_for_it():
    grid = beat_grid(measures(1, 4, 3))
    assert downbeats(1, 4, 3) == [1, 5]
    assert grid.length == 8  # one beat before the next barline, where the pickup comes again
    assert not grid.unmetred


def test_a_full_last_bar_after_a_pickup_waits_for_the_next_barline_less_the_pickup():
    grid = beat_grid(measures(1, 4, 4))
    assert grid.length == 12
    assert downbeats(1, 4, 4) == [1, 5, 9]
    assert [beat[0] for beat in grid.beats] == list(range(12))


def test_two_measures_around_a_repeat_sign_are_one_bar():
    assert downbeats(4, 3, 1, 4) == [0, 4, 8]
    assert not beat_grid(measures(4, 3, 1, 4)).unmetred


def test_a_bar_that_ends_the_piece_in_two_measures_repeats_on_its_barline():
    assert beat_grid(measures(4, 3, 1)).length == 8


def test_a_measure_that_fits_no_bar_is_unmetred_and_nothing_is_guessed_for_it():
    grid = beat_grid(measures(4, 3, 4, 6, 4))
    assert grid.unmetred == ((4, 7), (11, 17))
    assert [beat[0] for beat in grid.beats] == [0, 1, 2, 3, 7, 8, 9, 10, 17, 18, 19, 20]


def piece_of(lengths: tuple[int, ...]) -> Piece:
    """A piece with a note on every quarter of measures of these lengths, in 4/4."""
    bars = [
        Measure(m.start * TICKS_PER_QUARTER, m.length * TICKS_PER_QUARTER, 4 * TICKS_PER_QUARTER, TICKS_PER_QUARTER)
        for m in measures(*lengths)
    ]
    grid = beat_grid(bars)
    notes = [(n * TICKS_PER_QUARTER, TICKS_PER_QUARTER, 60 + n % 12, 0) for n in range(sum(lengths))]
    return Piece(
        uid="made-up",
        collection="various",
        title="",
        work="",
        notes=np.array(notes),
        beats=np.array(grid.beats),
        unmetred=grid.unmetred,
        keys=((0, None),),
        length=grid.length,
    )


def take_of(piece: Piece, *, bpm: float = 120.0, start_quarters: float = 0.0, seconds: float = 16.0) -> Take:
    start = round(start_quarters * TICKS_PER_QUARTER)
    return Take("t", piece.uid, seconds, bpm, start, 0, programs=(0,), velocities=(90,), peak_db=-3.0)


def test_beats_go_on_evenly_through_repetitions_of_a_piece_with_a_pickup():
    piece = piece_of((1, 4, 4, 3))
    labels = label_take(piece, take_of(piece, start_quarters=2.5))
    assert np.allclose(np.diff(labels["beats"]), 0.5)
    assert np.allclose(np.diff(labels["downbeats"]), 2.0)
    assert labels["beats"][0] == pytest.approx(0.25)  # the window opens half a beat after the second quarter
    assert labels["downbeats"][0] == pytest.approx(1.25)
    assert max(labels["beats"]) < 16.0 and len(labels["beats"]) == 32


def test_beats_scale_with_tempo_and_the_tempo_is_their_rate():
    piece = piece_of((4, 4, 4, 4))
    slow, fast = (label_take(piece, take_of(piece, bpm=bpm)) for bpm in (60.0, 120.0))
    assert slow["collection"] is None  # too few of these to be a class
    assert slow["tempo_bpm"] == 60.0 and fast["tempo_bpm"] == 120.0
    assert np.allclose(np.array(slow["beats"]), 2 * np.array(fast["beats"][: len(slow["beats"])]))
    assert fast["note_density_hz"] == pytest.approx(2.0) and slow["note_density_hz"] == pytest.approx(1.0)


def test_only_windows_that_touch_an_unmetred_passage_lose_their_beats():
    piece = piece_of((4,) * 8 + (3,) + (4,) * 8)
    before = label_take(piece, take_of(piece, seconds=8.0))
    across = label_take(piece, take_of(piece, start_quarters=24, seconds=8.0))
    assert before["beats"] is not None and before["tempo_bpm"] == 120.0
    assert across["beats"] is None and across["downbeats"] is None and across["tempo_bpm"] is None


def test_a_piece_survives_being_written_and_read():
    piece = piece_of((1, 4, 3))
    copy = piece_from_json(piece_to_json(piece))
    assert np.array_equal(copy.notes, piece.notes) and np.array_equal(copy.beats, piece.beats)
    assert (copy.uid, copy.unmetred, copy.keys, copy.length) == (piece.uid, piece.unmetred, piece.keys, piece.length)
