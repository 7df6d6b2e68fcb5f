import mir_eval
import numpy as np
import pytest

from distributed.marble.tasks.chords import CHORD_CLASSES, ChordSegment, exact_frames, majmin_class, upstream_frames
from pupujepa.errors import UserError

C, F, A_MINOR, N = 0, 5, 12 + 9, 24


def segments(*parts: tuple[float, float, str]) -> list[ChordSegment]:
    return [ChordSegment(*part) for part in parts]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("C", 0),
        ("Db:maj7", 1),
        ("C#:7/3", 1),
        ("A:min", 21),
        ("B:min7", 23),
        ("F#:minmaj7", 18),
        ("N", 24),
        ("X", 24),
        ("C:sus4", -1),
        ("G:aug", -1),
        ("D:dim", -1),
        ("E:hdim7", -1),
        ("E:5", -1),
        ("C:maj(b3)", -1),
    ],
)
def test_chords_become_25_classes_by_the_triad_in_them(label: str, expected: int):
    """Major is 0-11, minor 12-23, N 24; a chord with neither triad or with both is -1, which is ignored."""
    assert majmin_class(label) == expected


def test_triads_are_those_of_mir_eval():
    """The class of every quality agrees with mir_eval's major-minor comparison, where that is defined."""
    judged = 0
    for quality in mir_eval.chord.QUALITIES:
        label = f"D:{quality}" if quality else "D"
        is_major = mir_eval.chord.majmin([label], ["D:maj"])[0]
        if is_major >= 0:
            judged += 1
            assert majmin_class(label) == CHORD_CLASSES.index("D:maj" if is_major else "D:min")
    assert judged >= 10


def test_a_label_outside_hartes_syntax_is_named():
    with pytest.raises(UserError, match=r"list:7: the chord 'Cmaj7' cannot be read .*Harte's syntax"):
        majmin_class("Cmaj7", origin="list:7")


def test_quirk_no_chord_inside_a_slice_is_the_chord_before_it():
    """Upstream replaces N by the chord before it, except at the start of a slice; clean keeps N."""
    annotated = segments((0, 1, "N"), (1, 2, "C"), (2, 3, "N"), (3, 4, "F"))
    rule = {"start_s": 0.0, "frames": 4, "frame_rate_hz": 1.0}
    assert upstream_frames(annotated, **rule).tolist() == [N, C, C, F]
    assert exact_frames(annotated, **rule).tolist() == [N, C, N, F]


def test_quirk_of_two_silences_the_second_stays():
    """Upstream looks back one annotated segment: in C, N, N the second N follows an N and stays N."""
    annotated = segments((0, 1, "C"), (1, 2, "N"), (2, 3, "N"))
    assert upstream_frames(annotated, start_s=0.0, frames=3, frame_rate_hz=1.0).tolist() == [C, C, N]


def test_quirk_ends_of_segments_are_ignored():
    """Upstream: a chord lasts until the next one, into padding and across slices. Clean ignores gaps."""
    annotated = segments((0, 1, "C"), (3, 4, "F"))
    rule = {"frames": 3, "frame_rate_hz": 1.0}
    assert upstream_frames(annotated, start_s=0.0, **rule).tolist() == [C, C, C]
    assert upstream_frames(annotated, start_s=3.0, **rule).tolist() == [F, F, F]
    assert upstream_frames(annotated, start_s=6.0, **rule).tolist() == [F, F, F]
    assert exact_frames(annotated, start_s=0.0, **rule).tolist() == [C, -1, -1]
    assert exact_frames(annotated, start_s=6.0, **rule).tolist() == [-1, -1, -1]


def test_quirk_before_the_first_chord_there_is_no_chord():
    """Upstream labels it N, as it does a track without annotations; clean leaves it out."""
    annotated = segments((2, 4, "A:min"))
    rule = {"start_s": 0.0, "frames": 3, "frame_rate_hz": 1.0}
    assert upstream_frames(annotated, **rule).tolist() == [N, N, A_MINOR]
    assert exact_frames(annotated, **rule).tolist() == [-1, -1, A_MINOR]
    assert upstream_frames([], **rule).tolist() == [N, N, N]


def test_quirk_unknown_chords_are_silence():
    """Upstream: X has no root and is N. Clean: X is unknown and ignored."""
    rule = {"start_s": 0.0, "frames": 2, "frame_rate_hz": 1.0}
    assert upstream_frames(segments((0, 2, "X")), **rule).tolist() == [N, N]
    assert exact_frames(segments((0, 2, "X")), **rule).tolist() == [-1, -1]


def test_a_chord_begins_with_the_first_frame_at_or_after_it():
    """At 25 frames/s a chord that begins at 0.1 s starts at frame 3 (0.12 s) under both rules."""
    annotated = segments((0, 0.1, "C"), (0.1, 1, "F"))
    for rule in (upstream_frames, exact_frames):
        classes = rule(annotated, start_s=0.0, frames=5, frame_rate_hz=25.0)
        np.testing.assert_array_equal(classes, [C, C, C, F, F])
