import math
from pathlib import Path

import pytest

from distributed.marble.datasets.corpus import LabelledTrack, cut, read_labelled_corpus, thin_tracks
from distributed.marble.tasks.tasks import Clips
from pupujepa.errors import UserError
from tests.distributed.marble.corpora import Recipe, make_corpus, read_rows, write_rows

SHORT = Recipe(pieces=8, duration_s=0.1)


def track(duration_s: float, uid: str = "a") -> LabelledTrack:
    return LabelledTrack(uid, Path("a.wav"), "train", uid, duration_s, {})


@pytest.mark.parametrize(
    ("duration_s", "indices"),
    [(9.0, [0, 1, 2]), (10.0, [0, 1, 2]), (8.4, [0, 1, 2]), (8.3, [0, 1]), (2.5, [0]), (2.0, [])],
)
def test_slices_follow_the_rule_of_the_reference(duration_s: float, indices: list[int]):
    """Windows of 3 s do not overlap; a partial last one needs 80 %, so a short track can have none."""
    clips = Clips(seconds=3.0, max_slices=None, min_ratio=0.8)
    assert [s.index for s in cut(track(duration_s), clips)] == indices


def test_a_limited_number_of_slices_is_spread_over_the_track():
    """One slice is the middle one, two are at one and three quarters; a track's start is often an intro."""
    assert [s.index for s in cut(track(30.72), Clips(5.12, max_slices=1))] == [3]
    assert [s.index for s in cut(track(30.72), Clips(5.12, max_slices=2))] == [1, 4]
    assert [s.index for s in cut(track(5.12), Clips(5.12, max_slices=1))] == [0]


def test_thinning_depends_on_the_ids_alone():
    """The kept tracks do not depend on the order, and a smaller choice is a subset of a larger one."""
    tracks = [track(1.0, f"t{i}") for i in range(30)]
    ten = {t.uid for t in thin_tracks(tracks, 10)}
    assert ten == {t.uid for t in thin_tracks(tracks[::-1], 10)}
    assert {t.uid for t in thin_tracks(tracks, 4)} < ten
    assert len(thin_tracks(tracks, 99)) == 30


def test_the_digest_notices_another_rendering_of_the_same_list(tmp_path: Path):
    """Other audio with equal labels changes the digest: old features must not be used."""
    digests = set()
    for name, change in (("a", False), ("b", False), ("c", True)):
        folder = make_corpus(tmp_path / name, SHORT)
        if change:
            path = next((folder / "audio").iterdir())
            path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x00\x3f")
        digests.add(read_labelled_corpus(folder).digest)
    assert len(digests) == 2


def test_a_missing_list_names_the_path_and_the_command(tmp_path: Path):
    with pytest.raises(UserError, match=rf"no tracks.jsonl in {tmp_path}.*python -m data scores {tmp_path}"):
        read_labelled_corpus(tmp_path)


def test_broken_lists_are_refused_with_the_line(tmp_path: Path):
    """A duplicate id, an invalid line, an unknown split and a missing audio file are clear errors."""
    folder = make_corpus(tmp_path / "c", SHORT)
    rows = read_rows(folder)
    for broken, message in (
        ([*rows, rows[0]], "appears twice"),
        ([{"track": "x"}], r"tracks.jsonl:1 is not a track \(duration_s is None"),
        ([rows[0], rows[1] | {"duration_s": "3:20"}], r"tracks.jsonl:2 is not a track \(duration_s is '3:20', not a"),
        ([rows[0] | {"duration_s": -1}], r"duration_s is -1.0, not a length in seconds"),
        ([rows[0] | {"labels": ["a"]}], r"tracks.jsonl:1 is not a track \(labels are \['a'\], not an object\); write"),
        ([rows[0] | {"labels": {"x": math.nan}}], r"tracks.jsonl:1: not JSON \(NaN is not finite\)"),
        ([rows[0] | {"track": "b"}, rows[1] | {"track": 1}], r"tracks.jsonl:2 is not a track \(track is 1, not text\)"),
        ([rows[0] | {"path": None}], r"path is None, not text"),
        ([rows[0] | {"path": "a\0b"}], r"does not exist"),
        ([rows[0] | {"split": "dev"}], "split 'dev' is not one of"),
        ([rows[0] | {"path": "audio/gone.wav"}], "gone.wav does not exist"),
    ):
        write_rows(folder, broken)
        with pytest.raises(UserError, match=message):
            read_labelled_corpus(folder)


def test_a_list_of_another_encoding_is_refused_with_the_line(tmp_path: Path):
    """One latin-1 byte makes the list unreadable; the sentence says where it is."""
    folder = make_corpus(tmp_path / "c", SHORT)
    with (folder / "tracks.jsonl").open("ab") as file:
        file.write(b'{"track": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"tracks.jsonl is not a UTF-8 list \(line \d+: byte 0xe9\); save it as UTF-8"):
        read_labelled_corpus(folder)
