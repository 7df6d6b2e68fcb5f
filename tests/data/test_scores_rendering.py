"""The rendered audio agrees with the labels."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from data.scores.catalogue import COLLECTIONS, list_candidates
from data.scores.cli import find_resources
from data.scores.labels import label_take
from data.scores.parsing import parse_piece
from data.scores.pieces import TICKS_PER_QUARTER, Piece, estimate_key
from data.scores.programs import FAMILIES, PLAYABLE, channel_volume, draw_program, family
from data.scores.rendering import SAMPLE_RATE_HZ, render_take, wav_bytes, wav_size
from data.scores.takes import Notes, Take, draw_take, notes_of
from pupujepa.randomness import generator

CORPUS, SOUNDFONT = find_resources()


def take(seconds: float, *programs: int) -> Take:
    return Take("t", "p", seconds, 60.0, 0, 0, programs=programs, velocities=(100,) * len(programs), peak_db=-6.0)


def notes(*rows: tuple[float, float, int, int]) -> Notes:
    """Onset and end in seconds, pitch, part."""
    onset_s, end_s, pitch, part = (np.array(column) for column in zip(*rows, strict=True))
    return Notes(onset_s, end_s, pitch, part)


def tone(program: int, pitch: int) -> np.ndarray:
    """Half a second of one note, after its attack."""
    audio_S = render_take(take(0.75, program), notes((0.0, 1.0, pitch, 0)), soundfont=SOUNDFONT)
    return audio_S[int(0.15 * SAMPLE_RATE_HZ) : int(0.65 * SAMPLE_RATE_HZ)].astype(np.float64)


def frequency_hz(pitch: float) -> float:
    return 440 * 2 ** ((pitch - 69) / 12)


@pytest.mark.parametrize("program", [0, 6, 11, 19, 24, 33, 40, 56, 60, 71, 73, 80, 105])
def test_the_period_of_a_note_is_that_of_its_pitch(program):
    """By autocorrelation, within 30 cents: the peak nearest the expected period, which must be strong."""
    for pitch in (45, 60, 67, 79):
        sound_S = tone(program, pitch)
        spectrum = np.abs(np.fft.rfft(sound_S, 2 * len(sound_S))) ** 2
        correlation = np.fft.irfft(spectrum)[: len(sound_S)] / np.arange(len(sound_S), 0, -1)
        expected = SAMPLE_RATE_HZ / frequency_hz(pitch)
        # ten periods, so that a lag of whole samples is exact enough
        lags = np.arange(round(10 * expected * 2 ** (-3 / 12)), round(10 * expected * 2 ** (3 / 12)))
        lags = lags[np.abs(1200 * np.log2(lags / (10 * expected))) < 75]
        best = lags[np.argmax(correlation[lags])]
        assert abs(1200 * np.log2(best / (10 * expected))) < 30, (program, pitch)
        assert correlation[best] > 0.5 * correlation[0], (program, pitch)


@pytest.mark.parametrize("pitch", [50, 69])
def test_every_playable_program_sounds_in_the_pitch_class_that_it_is_asked_for(pitch):
    """By harmonic summation over more than an octave; octaves apart are the voicing of organs and bells."""
    cents = np.arange(-1300, 1301, 5)
    for program in PLAYABLE:
        sound_S = tone(program, pitch)
        spectrum = np.abs(np.fft.rfft(sound_S * np.hanning(len(sound_S)), 8 * len(sound_S)))
        bins = frequency_hz(pitch) * 2 ** (cents / 1200) * 8 * len(sound_S) / SAMPLE_RATE_HZ
        salience = sum(
            0.84**h * spectrum[np.minimum(np.rint(h * bins).astype(int), len(spectrum) - 1)] for h in range(1, 9)
        )
        off = cents[np.argmax(salience)]
        assert min(abs(off - octave) for octave in (-1200, 0, 1200)) <= 30, (program, pitch, off)


def test_programs_are_drawn_from_all_families_that_have_a_pitch():
    rng = generator(0, "programs")
    drawn = {draw_program(rng) for _ in range(3000)}
    assert drawn == set(PLAYABLE)
    assert {family(program) for program in drawn} == set(FAMILIES) - {"sound effects"}
    assert all(1 <= channel_volume(program) <= 127 for program in PLAYABLE)


def test_a_quiet_program_is_not_drowned_by_a_loud_one():
    """Honky-tonk piano and harp differ by 19 dB in the soundfont."""
    rows = ((0.0, 1.0, 60, 0), (1.5, 2.5, 60, 1))
    audio_S = render_take(take(3.0, 3, 46), notes(*rows), soundfont=SOUNDFONT)
    quiet, loud = (audio_S[int(s * SAMPLE_RATE_HZ) :][: SAMPLE_RATE_HZ // 2].std() for s in (0.0, 1.5))
    assert abs(20 * np.log10(loud / quiet)) < 10


def test_notes_begin_at_the_very_sample():
    rows = ((0.5, 0.6, 60, 0), (1.25, 1.4, 72, 0))
    audio_S = np.abs(render_take(take(2.0, 80), notes(*rows), soundfont=SOUNDFONT))
    first = np.argmax(audio_S > 1e-4) / SAMPLE_RATE_HZ
    quiet = audio_S[int(1.0 * SAMPLE_RATE_HZ) : int(1.249 * SAMPLE_RATE_HZ)]
    assert first == pytest.approx(0.5, abs=0.003)
    assert quiet.max() < 0.1 * audio_S.max() < audio_S[int(1.25 * SAMPLE_RATE_HZ) :][:1200].max()


def test_a_note_that_began_before_the_window_is_heard_from_its_middle():
    """A long-held piano note has no attack at the start, but sounds from the first sample."""
    held = render_take(take(1.0, 0), notes((-1.5, 0.8, 60, 0), (0.9, 1.0, 60, 0)), soundfont=SOUNDFONT)
    tenth = SAMPLE_RATE_HZ // 10
    assert 0 < np.abs(held[tenth : 2 * tenth]).max() < 0.7 * np.abs(held[9 * tenth :]).max()
    assert np.abs(held[200:tenth]).max() > 0.01


def test_peak_length_and_edges_of_a_take():
    audio_S = render_take(take(1.0, 16), notes((-1.0, 2.0, 60, 0)), soundfont=SOUNDFONT)
    assert len(audio_S) == SAMPLE_RATE_HZ
    assert np.abs(audio_S).max() == pytest.approx(10 ** (-6 / 20), rel=1e-3)
    assert audio_S[0] == audio_S[-1] == 0  # an organ cut in two, without a click
    assert len(wav_bytes(audio_S)) == wav_size(1.0)


@cache
def chorale() -> Piece:
    """BWV 269, in G major, from music21."""
    bach = next(c for c in COLLECTIONS if c.name == "bach")
    candidate = next(c for c in list_candidates(CORPUS, bach) if c.uid == "bach-bwv269")
    return parse_piece(candidate, CORPUS)


def performed(**changes) -> tuple[Take, np.ndarray]:
    """The start of the chorale on four pianos."""
    piece = chorale()
    drawn = replace(draw_take(piece, 0, seed=0, seconds=20.0), bpm=84.0, start=0, programs=(0,) * 4, **changes)
    return drawn, render_take(drawn, notes_of(piece, drawn), soundfont=SOUNDFONT)


def test_a_known_chorale_is_read_as_it_is_printed():
    piece = chorale()
    assert piece.parts == 4 and piece.beat_period == TICKS_PER_QUARTER
    assert piece.keys == ((0, "G major"),) and not piece.unmetred
    downbeats = [tick // TICKS_PER_QUARTER for tick, _, down in piece.beats.tolist() if down]
    assert downbeats[:3] == [1, 4, 7]  # 3/4 with a pickup of one quarter


@pytest.mark.parametrize("transposition", [-5, 0, 4])
def test_the_key_label_is_the_key_that_is_heard(transposition):
    """By the chroma of the audio, in bands of a semitone from A2 to A6."""
    drawn, audio_S = performed(transposition=transposition)
    power = np.abs(np.fft.rfft(audio_S.reshape(-1, 8000) * np.hanning(8000))).mean(axis=0)
    hz = np.fft.rfftfreq(8000, 1 / SAMPLE_RATE_HZ)
    used = (hz > 110) & (hz < 1760)
    pitches = np.rint(69 + 12 * np.log2(hz[used] / 440)).astype(int)
    label = label_take(chorale(), drawn)["key"]
    assert label == {-5: "D major", 0: "G major", 4: "B major"}[transposition]
    assert estimate_key(pitches, weights=power[used]) == label


def test_onsets_are_heard_at_the_labelled_beats_and_not_beside_them():
    drawn, audio_S = performed(transposition=0)
    hop = 240
    frames = np.lib.stride_tricks.sliding_window_view(audio_S, 1024)[::hop] * np.hanning(1024)
    magnitude = np.log1p(100 * np.abs(np.fft.rfft(frames)))
    flux = np.maximum(0, np.diff(magnitude, axis=0)).sum(axis=1)

    def strength(times_s: np.ndarray) -> float:
        # a frame shows an onset when it reaches the window's middle
        at = np.rint((times_s * SAMPLE_RATE_HZ - 512) / hop).astype(int)
        return float(np.mean([flux[max(0, i - 2) : i + 4].max() for i in at if 2 <= i < len(flux) - 4]))

    beats_s = np.array(label_take(chorale(), drawn)["beats"])
    beside = [strength(beats_s + share * 60 / 84) for share in (0.25, 0.75)]
    assert strength(beats_s) > 3 * max(beside)


def test_a_take_is_a_function_of_the_seed_and_its_piece_alone():
    piece = chorale()
    assert draw_take(piece, 1, seed=7, seconds=12.0) == draw_take(piece, 1, seed=7, seconds=12.0)
    assert draw_take(piece, 1, seed=7, seconds=12.0) != draw_take(piece, 0, seed=7, seconds=12.0)
    assert draw_take(piece, 1, seed=7, seconds=12.0) != draw_take(piece, 1, seed=8, seconds=12.0)


def test_instruments_are_those_that_play_in_the_window():
    quarter = TICKS_PER_QUARTER
    rows = [(n * quarter, quarter, 60, 0) for n in range(64)] + [(n * quarter, quarter, 48, 1) for n in range(40, 64)]
    piece = replace(chorale(), notes=np.array(sorted(rows)), keys=((0, None),), length=64 * quarter)
    drawn = replace(take(16.0, 0, 56), bpm=60.0)
    assert label_take(piece, drawn)["instruments"] == ["piano"]
    assert label_take(piece, replace(drawn, start=36 * quarter))["instruments"] == ["piano", "brass"]
