"""What a build leaves out: damage counts against the limit, what cannot be read now is tried again, all is told."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from data.building import spool as feature_pass
from data.building.build import Build
from data.building.config import BuildConfig
from data.building.features import FeatureConfig, TrackFacts
from data.building.inputs import read_inputs
from data.building.rejections import NOTES_NAME, REJECTED_NAME, Rejections, summary_lines, write_notes
from data.building.tracks import DAMAGED, MISSING, UNREADABLE, AudioPlace, SourceTrack
from data.shards.manifest import read_manifest
from data.store.store import open_store
from pupujepa.errors import UnreadableError, UserError
from tests.data.songs import write_song

CONFIG = BuildConfig(features=FeatureConfig(part_frames=300, min_frames=100))


def left_out(**numbers: int) -> dict[str, TrackFacts]:
    """Facts of tracks that are left out: their number by kind, with _ for a blank."""
    kinds = {kind.replace("_", " "): count for kind, count in numbers.items()}
    return {
        f"{kind} {i}": TrackFacts(rejected=f"{kind} {i}.wav: because", kind=kind)
        for kind, count in kinds.items()
        for i in range(count)
    }


def rejections(folder: Path, total: int, *, limit: float = 0.01) -> Rejections:
    return Rejections(replace(CONFIG, max_rejected=limit), total, open_store(str(folder)))


def test_whole_tracks_that_are_too_short_or_silent_are_no_damage(tmp_path: Path):
    """A folder of sound effects builds: 40 of 100 too short or silent tracks stop nothing at any limit."""
    rejections(tmp_path, 100, limit=0).judge(left_out(too_short=30, silent=10), at_end=True)
    with pytest.raises(
        UserError, match=r"^1 of 100 files cannot be used, more than --max-rejected 0 allows, .*damaged"
    ):
        rejections(tmp_path, 100, limit=0).judge(left_out(too_short=30, damaged=1), at_end=True)
    with pytest.raises(UserError, match=r"^none of 3 files can be used, the first because: too short 0.wav"):
        rejections(tmp_path, 3).judge(left_out(too_short=2, silent=1), at_end=True)


def test_a_small_build_names_all_damage_at_its_end(tmp_path: Path):
    """Under a share as limit, up to 20 unusable tracks wait for the end; then all are listed, and some are named."""
    found = left_out(damaged=8, missing=1)
    rejections(tmp_path, 50).judge(found, at_end=False)
    named = (
        r"damaged 0.wav: because \(the others: damaged 1, damaged 2, .* damaged 5 and 3 more\); see .*rejected.jsonl"
    )
    with pytest.raises(UserError, match=rf"^9 of 50 files cannot be used, .* allows, the first because: {named}"):
        rejections(tmp_path, 50).judge(found, at_end=True)
    rows = [json.loads(line) for line in (tmp_path / REJECTED_NAME).read_text().splitlines()]
    assert [row["track"] for row in rows] == sorted(found)
    assert {row["kind"] for row in rows} == {DAMAGED, MISSING}
    with pytest.raises(UserError, match=r"^21 of 50 files"):
        rejections(tmp_path, 50).judge(left_out(damaged=21), at_end=False)
    with pytest.raises(UserError, match=r"^3 of 50 files"):  # a limit in files is exact
        rejections(tmp_path, 50, limit=2).judge(left_out(damaged=3), at_end=False)


def test_what_cannot_be_read_now_stops_the_build_at_its_end(tmp_path: Path):
    """No limit allows an unreadable file; a failing disk stops the build at the 21st, not after 1,000."""
    rejections(tmp_path, 50, limit=0.5).judge(left_out(unreadable=1), at_end=False)
    said = (
        r"^1 of 50 files cannot be read now, the first because: unreadable 0.wav: because; mend this or leave them out"
    )
    with pytest.raises(UserError, match=said):
        rejections(tmp_path, 50, limit=0.5).judge(left_out(too_short=4, unreadable=1), at_end=True)
    with pytest.raises(UserError, match=r"^21 of 50 files cannot be read now"):
        rejections(tmp_path, 50).judge(left_out(unreadable=21), at_end=False)
    with pytest.raises(UserError, match=r"^1 of 1 file cannot be read now"):
        rejections(tmp_path, 1).judge(left_out(unreadable=1), at_end=True)


def test_a_file_without_rights_is_not_rejected(tmp_path: Path):
    """The worker names the cause and leaves nothing in the spool, so that the next start decodes the file again."""
    write_song(tmp_path / "a.wav", 2.0)
    (tmp_path / "a.wav").chmod(0)
    unit = [(SourceTrack("a", AudioPlace(str(tmp_path / "a.wav")), "s", "train"), "name")]
    user, spool = os.geteuid(), str(tmp_path / "spool")
    try:
        os.seteuid(user or 65_534)  # root may read everything
        [facts] = feature_pass.spool_unit(unit, spool=spool, config=CONFIG.features)
    finally:
        os.seteuid(user)
    assert facts == TrackFacts(rejected=f"{tmp_path}/a.wav: cannot be read (Permission denied)", kind=UNREADABLE)
    assert open_store(spool).list() == []
    (tmp_path / "a.wav").chmod(0o600)
    assert feature_pass.spool_unit(unit, spool=spool, config=CONFIG.features)[0].frames == 200


def test_a_build_is_finished_after_its_disk_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """EIO on one file: the others are done, nothing is published; the same build then decodes that file alone."""
    for number in range(4):
        write_song(tmp_path / "in" / f"{number}.wav", 2.0, seed=number)
    decoded, extract = [], feature_pass.extract

    def failing(path: Path, *arguments, **options):
        decoded.append(path.name)
        if path.name == "1.wav" and decoded.count("1.wav") == 1:
            raise UnreadableError(errno.EIO, os.strerror(errno.EIO), str(path))
        return extract(path, *arguments, **options)

    monkeypatch.setattr(feature_pass, "extract", failing)
    # in this process, which has the failing disk
    monkeypatch.setattr(feature_pass, "warm_up", lambda preload: None)
    monkeypatch.setattr(
        feature_pass, "map_unordered", lambda work, items, **_: ((position, work(item)) for position, item in items)
    )
    out = tmp_path / "out"
    build = Build(read_inputs(tmp_path / "in", seed=0), str(out), config=CONFIG, work=str(out / ".work"), workers=1)
    with pytest.raises(
        UserError, match=r"^1 of 4 files cannot be read now, .*1.wav: cannot be read \(Input/output error"
    ):
        build.run()
    assert not build.is_complete()
    assert not (out / "train").exists()
    build.run()
    assert decoded == ["0.wav", "1.wav", "2.wav", "3.wav", "1.wav"]
    assert read_manifest(str(out / "train")).tracks == 4
    assert build.summary == ["4 tracks in the input: 4 built"]
    assert (out / REJECTED_NAME).read_bytes() == b""


def test_rejections_of_an_earlier_version_are_judged_again(tmp_path: Path):
    """Facts without a kind may be of a file that only could not be read; they are not taken."""
    store = open_store(str(tmp_path))
    for name, facts in (("old", {"rejected": "x: cannot be decoded"}), ("new", {"rejected": "y", "kind": DAMAGED})):
        store.write(f"{name}.json", json.dumps({"parts": [], **facts}).encode())
    assert list(feature_pass.spooled_facts(str(tmp_path), ["old", "new"])) == ["new"]


def test_the_summary_accounts_for_every_track(tmp_path: Path):
    """Tracks by outcome, the place of the list, and the first notes; without notes there is no list of them."""
    store, good = open_store(str(tmp_path)), TrackFacts("", audio_sha256="x")
    noted = [replace(good, note=f"{i}.mp3: 12.00 s, announced 80.00 s") for i in range(7)]
    facts = [*[good] * 3, *left_out(too_short=2, silent=1).values(), *noted]
    assert summary_lines(facts, store, dropped=1) == [
        f"13 tracks in the input: 9 built, 2 too short, 1 silent, 1 duplicate dropped; see {tmp_path}/rejected.jsonl",
        *(f"note: {i}.mp3: 12.00 s, announced 80.00 s" for i in range(5)),
        f"note: 2 more, see {tmp_path}/{NOTES_NAME}",
    ]
    assert summary_lines([good], store, dropped=0) == ["1 track in the input: 1 built"]
    write_notes(store, {"b": "cut", "a": "long"})
    rows = [json.loads(line) for line in (tmp_path / NOTES_NAME).read_text().splitlines()]
    assert rows == [{"note": "long", "track": "a"}, {"note": "cut", "track": "b"}]
    write_notes(store, {})
    assert not (tmp_path / NOTES_NAME).exists()
