"""The whole command gives the same bytes for every way to run it; nothing is mixed or dropped silently."""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from data.scores import cli
from data.scores.catalogue import COLLECTIONS, Candidate, order_candidates, share_out
from data.scores.cli import choose_pieces
from data.scores.parsing import parse_piece
from data.scores.pieces import UnusableScoreError
from pupujepa.errors import UserError
from tests.processes import members

ROOT = Path(cli.__file__).parents[2]
SIZE = ("--pieces", "6", "--takes", "2", "--seconds", "6", "--seed", "5")

# The command, which never comes to write its last files: however fast the machine is, it can be killed before that.
ENDLESS = """
import sys, time

from data.__main__ import COMMANDS, enter
from data.scores import cli

cli.write_rows = lambda *_: time.sleep(3600)
if __name__ == "__main__":
    enter("data", COMMANDS, manual="", argv=sys.argv[1:])
"""


def arguments(out: Path, *options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args([str(out), *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "tracks.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """One piece of each of the six biggest collections, two takes, made by one process."""
    out = tmp_path_factory.mktemp("scores") / "one"
    assert cli.run(arguments(out, *SIZE, "--workers", "1")) == 0
    return out


def test_tracks_are_complete_and_the_audio_is_as_they_say(corpus):
    tracks = rows(corpus)
    assert len(tracks) == 12 and len({track["track"] for track in tracks}) == 12
    assert {t["source"] for t in tracks} == {"ryans", "oneills", "airds", "essen", "essen_china", "palestrina"}
    for track in tracks:
        info = soundfile.info(corpus / track["path"])
        assert (info.samplerate, info.channels, info.subtype) == (24000, 1, "PCM_16")
        assert info.frames == round(track["duration_s"] * 24000) == 6 * 24000
        assert track["split"] in ("train", "valid", "test") and track["group"]
        labels = track["labels"]
        assert list(labels) == [
            *("key", "beats", "downbeats", "instruments", "tempo_bpm", "note_density_hz", "collection")
        ]
        assert labels["instruments"] and labels["note_density_hz"] > 0
        assert labels["collection"] == track["source"]
        if labels["beats"] is not None:
            assert set(labels["downbeats"]) < set(labels["beats"]) and labels["beats"] == sorted(labels["beats"])
            assert labels["beats"][0] >= 0 and labels["beats"][-1] < 6
    assert (corpus / "rejected.jsonl").exists()


def test_both_takes_of_a_piece_are_in_one_split_and_group_and_differ(corpus):
    tracks = rows(corpus)
    for one, other in zip(tracks[::2], tracks[1::2], strict=True):
        assert (one["piece"], one["split"], one["group"]) == (other["piece"], other["split"], other["group"])
        assert (corpus / one["path"]).read_bytes() != (corpus / other["path"]).read_bytes()


def test_two_processes_killed_twice_end_with_the_same_bytes(corpus, tmp_path):
    """SIGKILL while parsing and again while rendering; the workers end too, and the same command completes."""
    out = tmp_path / "two"
    command = ["scores", str(out), *SIZE, "--workers", "2"]
    for sign_of_life in ("notes/*.json", "audio/*.wav"):
        process = subprocess.Popen([sys.executable, "-c", ENDLESS, *command], cwd=ROOT, start_new_session=True)
        wait_until(lambda: any(out.glob(sign_of_life)) or process.poll() is not None, timeout_s=500)  # noqa: B023
        assert process.poll() is None, "ended before it could be killed"
        process.kill()
        process.wait()
        wait_until(lambda: not members(process.pid), timeout_s=300)  # noqa: B023
        assert not (out / "tracks.jsonl").exists()
    subprocess.run([sys.executable, "-m", "data", *command], cwd=ROOT, check=True, timeout=900)
    assert contents(out) == contents(corpus)


def wait_until(condition, *, timeout_s: float) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "timed out"
        time.sleep(0.005)


def test_a_second_run_renders_nothing_and_a_lost_file_is_made_again(corpus, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    before = contents(copy)
    lost, cut, kept = sorted((copy / "audio").iterdir())[:3]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:1000])
    kept_since = kept.stat().st_mtime_ns
    cli.run(arguments(copy, *SIZE, "--workers", "1"))
    assert contents(copy) == before
    assert kept.stat().st_mtime_ns == kept_since


def test_other_settings_are_refused_in_the_same_folder(corpus):
    before = contents(corpus)
    with pytest.raises(UserError, match=r"made with other settings \(seed 5 -> 6\).*name another folder"):
        cli.run(arguments(corpus, *SIZE[:-1], "6"))
    assert contents(corpus) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pieces", "0"), "--pieces is 0"),
        (("--seconds", "nan"), "--seconds is nan"),
        (("--takes", "-1"), "--takes is -1"),
    ],
)
def test_sizes_without_meaning_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        cli.run(arguments(tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named_with_the_command_that_installs_them(tmp_path, monkeypatch):
    real = cli.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name in ("music21", "tinysoundfont") else real(name))
    with pytest.raises(UserError) as raised:
        cli.run(arguments(tmp_path / "out"))
    assert "music21 and tinysoundfont cannot be imported" in str(raised.value)
    assert "`pip install -e .[demo]` and `pip install --no-deps tinysoundfont`" in str(raised.value)


def small_corpus(folder: Path) -> Path:
    """Six tunes, one of them broken and one too short."""
    tune = "X:{n}\nT:Number {n}\nM:2/4\nL:1/8\nK:G\n" + "GABc dBGB|AcBA GFGA|" * 4 + "\n\n"
    text = (
        "".join(tune.format(n=n) for n in range(4))
        + "X:4\nT:Broken\nM:0/0\nK:G\nGABc|\n\nX:5\nT:Short\nM:2/4\nK:G\nGA|\n"
    )
    (folder / "ryansMammoth").mkdir(parents=True)
    (folder / "ryansMammoth" / "book.abc").write_text(text)
    return folder


def choose(folder: Path, count: int, cache: Path):
    corpus = small_corpus(folder) if not folder.exists() else folder
    return choose_pieces(corpus, count, cache=cache, reader="test", seed=0, workers=1)


def test_an_unusable_score_is_replaced_and_recorded_with_its_reason(tmp_path):
    pieces, rejected = choose(tmp_path / "corpus", 4, tmp_path / "cache")
    all_pieces, all_rejected = choose(tmp_path / "corpus", 6, tmp_path / "cache")
    assert len(pieces) == 4 and len(all_pieces) == 4 and {p.uid for p in pieces} == {p.uid for p in all_pieces}
    reasons = {r["uid"]: r["reason"] for r in all_rejected}
    assert set(reasons) == {"ryans-book-004", "ryans-book-005"}
    assert "fewer than 16" in reasons["ryans-book-005"]
    assert {r["uid"] for r in rejected} <= set(reasons)


def test_parsed_pieces_come_from_the_cache_and_another_readers_are_read_again(tmp_path):
    first, _ = choose(tmp_path / "corpus", 4, tmp_path / "cache")
    (tmp_path / "corpus" / "ryansMammoth" / "book.abc").write_text("X:0\n" * 6)
    second, _ = choose(tmp_path / "corpus", 4, tmp_path / "cache")
    assert [p.uid for p in first] == [p.uid for p in second]
    again = {"cache": tmp_path / "cache", "reader": "newer"}
    pieces, rejected = choose_pieces(tmp_path / "corpus", 4, **again, seed=0, workers=1)
    assert not pieces and len(rejected) == 6


def test_a_file_that_music21_cannot_read_is_unusable_and_no_crash(tmp_path):
    bach = next(c for c in COLLECTIONS if c.name == "bach")
    (tmp_path / "bach").mkdir()
    (tmp_path / "bach" / "bad.mxl").write_bytes(b"no archive")
    with pytest.raises(UnusableScoreError, match="music21 cannot read it"):
        parse_piece(Candidate("bach-bad", bach, "bach/bad.mxl", None, ""), tmp_path)


def test_small_collections_give_all_they_have_and_the_others_share_the_rest():
    assert share_out([100, 3, 100], 43) == [20, 3, 20]
    assert share_out([5, 5], 100) == [5, 5]
    assert sum(share_out([1000, 17, 400, 90, 2], 501)) == 501


def test_the_order_of_choice_is_seeded_and_brings_minor_tunes_forward():
    ryans = COLLECTIONS[0]
    tunes = [Candidate(f"t{n}", ryans, "", n, "", minor=n < 10) for n in range(100)]
    order = order_candidates(tunes, 1)
    assert order == order_candidates(tunes[::-1], 1) != order_candidates(tunes, 2)
    assert sum(c.minor for c in order[:30]) == 10 and len(set(order)) == 100
