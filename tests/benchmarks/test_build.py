"""The build benchmark: both sides store the same tracks and nearly the same values, and its figures are right."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.alternate import Comparison
from benchmarks.build import agree, features, hours_of, rates, song, write_songs
from benchmarks.build_side import build_librosa, build_ours, stored
from benchmarks.profiled import profile

SECONDS = 4.0
# librosa imports them when it first decodes a file
pytestmark = pytest.mark.filterwarnings("ignore:'(aifc|audioop|sunau)' is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two songs, built by both sides."""
    folder = tmp_path_factory.mktemp("build")
    write_songs({"wav": folder / "songs"}, songs=2, seconds=SECONDS)
    build_ours(folder / "songs", folder / "ours")
    build_librosa(folder / "songs", folder / "librosa")
    return folder


def test_both_sides_store_the_same_tracks_and_nearly_the_same_codes(built):
    """The resamplers alone make a difference: under one code of 255 on average."""
    assert sorted(stored(built / "ours")) == ["song000", "song001"]
    words = agree(built / "ours", built / "librosa")
    assert words.startswith("2 tracks")
    assert float(words.split(" by ")[1].split()[0]) < 1.0


def test_sides_that_stored_other_tracks_are_not_compared(built, tmp_path):
    """A side that skips a file must not look fast."""
    write_songs({"wav": tmp_path / "songs"}, songs=1, seconds=SECONDS)
    build_librosa(tmp_path / "songs", tmp_path / "librosa")
    with pytest.raises(ValueError, match="ours stored the tracks"):
        agree(built / "ours", tmp_path / "librosa")


def test_a_side_that_stored_less_of_a_track_is_not_compared(built, tmp_path):
    """Nor must one that stops early."""
    write_songs({"wav": tmp_path / "songs"}, songs=2, seconds=SECONDS - 1)
    build_librosa(tmp_path / "songs", tmp_path / "librosa")
    with pytest.raises(ValueError, match="ours has 400 frames, the peer 300"):
        agree(built / "ours", tmp_path / "librosa")


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_songs_are_written_in_every_format_and_read_by_our_side(suffix, tmp_path):
    """Two songs of four seconds are hours of that length, whatever the container."""
    write_songs({suffix: tmp_path / suffix}, songs=2, seconds=SECONDS)
    assert hours_of(tmp_path / suffix) * 3600 == pytest.approx(2 * SECONDS, abs=0.2)
    features(tmp_path / suffix)


def test_songs_are_different_and_within_full_scale():
    """Equal songs would be dropped as duplicates."""
    one, other = song(0, SECONDS), song(1, SECONDS)
    assert np.abs(one).max() <= 1
    assert np.abs(one - other).max() > 0.1


def test_rates_are_hours_of_audio_per_core_hour():
    """Half an hour of audio in 6 s on a core is 300 hours in an hour, by the median round."""
    compared = Comparison((6.0, 6.0, 60.0), (12.0, 12.0, 12.0))
    assert rates(compared, 0.5) == "300 hours of audio per core-hour, librosa 150"


def test_a_profile_names_the_function_that_takes_the_time():
    """The table is sorted by own time, the slowest first."""

    def slow() -> int:
        total = 0
        # a loop: of a generator, sum() takes as long as what it sums
        for number in range(200_000):
            total += number % 7
        return total

    first = profile(slow).splitlines()[2]
    assert "test_build.py" in first
