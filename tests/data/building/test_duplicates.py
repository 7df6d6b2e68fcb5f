"""Equal audio under other names and formats is found, reported, dropped on request; across splits it is a warning."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.__main__ import COMMANDS
from data.building.config import read_build_record
from data.check.verify import verify
from data.reading.reader import ShardReader
from data.shards.manifest import read_manifest
from data.store.store import open_store
from pupujepa.front_door import enter
from tests.data.songs import write_song


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Five files, three of them with equal samples: a wav, its copy, and a flac of it, listed in that order."""
    folder = tmp_path / "songs"
    write_song(folder / "other.wav", 3.0, seed=1)
    write_song(folder / "z-first.wav", 3.0, seed=2)
    shutil.copy(folder / "z-first.wav", folder / "b-copy.wav")
    audio_S, rate_hz = soundfile.read(folder / "z-first.wav", dtype="int16")
    soundfile.write(folder / "a-flac.flac", audio_S, rate_hz)
    louder_S = np.where(np.arange(len(audio_S)) == 7, audio_S + 1, audio_S).astype(np.int16)
    soundfile.write(folder / "c-one-sample-differs.wav", louder_S, rate_hz)
    names = ["other.wav", "z-first.wav", "b-copy.wav", "a-flac.flac", "c-one-sample-differs.wav"]
    splits = ["train", "train", "train", "test", "train"]
    lines = [{"path": name, "split": split} for name, split in zip(names, splits, strict=True)]
    (folder / "tracks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def run(*arguments: str) -> int:
    return enter("data", COMMANDS, manual="", argv=["build", *arguments, "--workers=1"])


def tracks_of(corpus: Path, split: str) -> set[str]:
    manifest = read_manifest(str(corpus / split))
    reader = ShardReader(str(corpus / split), manifest)
    found = {
        reader.read(shard, i)[1]["track"] for shard, entry in enumerate(manifest.shards) for i in range(entry.samples)
    }
    reader.close()
    return found


def test_they_are_reported_and_leaks_are_shouted(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    """All are kept by default; duplicates.jsonl names them in the order of the input, and a leak is a warning."""
    assert run(str(songs), str(tmp_path / "out")) == 0
    [row] = [json.loads(line) for line in (tmp_path / "out" / "duplicates.jsonl").read_text().splitlines()]
    assert [track["track"] for track in row["tracks"]] == row["kept"] == ["z-first", "b-copy", "a-flac"]
    assert [track["split"] for track in row["tracks"]] == ["train", "train", "test"]
    assert row["splits"] == ["test", "train"]
    out = capsys.readouterr().out
    assert "2 tracks repeat the audio of another exactly (1 set, see " in out
    assert "kept; --drop-duplicates leaves only the first of each set" in out
    assert "LEAKAGE: equal audio is in different splits (1 set), e.g. z-first (train), " in caplog.text
    assert tracks_of(tmp_path / "out", "train") == {"other", "z-first", "b-copy", "c-one-sample-differs"}
    assert tracks_of(tmp_path / "out", "test") == {"a-flac"}


def test_dropping_keeps_the_first_of_the_input(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    """--drop-duplicates keeps the first of the list, although its name sorts last, and says so."""
    assert run(str(songs), str(tmp_path / "out"), "--drop-duplicates") == 0
    assert tracks_of(tmp_path / "out", "train") == {"other", "z-first", "c-one-sample-differs"}
    assert not (tmp_path / "out" / "test").exists()
    out = capsys.readouterr().out
    assert "dropped, except the first of each set, such as z-first" in out
    assert "equal audio was in different splits (1 set), e.g. z-first (train)" in caplog.text
    assert "LEAKAGE" not in caplog.text
    [row] = [json.loads(line) for line in (tmp_path / "out" / "duplicates.jsonl").read_text().splitlines()]
    assert row["kept"] == ["z-first"]
    record = read_build_record(open_store(str(tmp_path / "out")))
    assert record is not None
    assert (record["inputs"], record["rejected"], record["duplicates"]) == (5, 0, 2)
    # mean, deviation and counts are those of what is left
    assert read_manifest(str(tmp_path / "out" / "train")).tracks == 3
    assert verify(str(tmp_path / "out" / "train"), deep=True) == []


def test_what_is_kept_belongs_to_the_identity_of_a_build(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Another order of the list would keep another track, so it is another corpus; without dropping it is the same."""
    lines = (songs / "tracks.jsonl").read_text().splitlines()
    for options, code in (([], 0), (["--drop-duplicates"], 2)):
        (songs / "tracks.jsonl").write_text("\n".join(lines))
        out = str(tmp_path / f"out{len(options)}")
        assert run(str(songs), out, *options) == 0
        (songs / "tracks.jsonl").write_text("\n".join(reversed(lines)))
        assert run(str(songs), out, *options) == code
    assert "already holds another corpus" in capsys.readouterr().err


def test_no_duplicates_are_no_news(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A corpus without duplicates has an empty list and prints no line."""
    write_song(tmp_path / "in" / "a.wav", 3.0, seed=1)
    assert run(str(tmp_path / "in"), str(tmp_path / "out")) == 0
    assert (tmp_path / "out" / "duplicates.jsonl").read_bytes() == b""
    assert "repeat" not in capsys.readouterr().out
