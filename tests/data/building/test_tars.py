"""Tars of audio: samples are indexed, and damage that plain tar readers ignore is an error with its position."""

import errno
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.building.inputs import read_inputs
from data.building.local_audio import local_audio, require_members
from data.building.tars import TarError, index_tar
from data.store.files import StoreError
from pupujepa.audio.find import NOT_UNICODE, PassedOver
from pupujepa.errors import UserError
from tests.data.test_build_inputs import write_tar

MEMBERS = {f"{key}.{ending}": f"{key} {ending}".encode() * 300 for key in "abcd" for ending in ("flac", "txt")}


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """A tar of four samples with a flac and a text each."""
    write_tar(tmp_path / "x.tar", MEMBERS)
    return tmp_path / "x.tar"


def offsets(tar: Path) -> dict[str, int]:
    """The offset of the header of each member."""
    with tarfile.open(tar) as file:
        return {info.name: info.offset for info in file}


def flip(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ 4]) + content[offset + 1 :]


DAMAGES: dict[str, tuple[Callable[[bytes, int], bytes], str]] = {
    "cut at a member boundary": (lambda c, c_flac: c[: c_flac + 2560], "no end mark at byte"),
    "cut inside a header": (lambda c, c_flac: c[: c_flac + 100], "after b.txt"),
    "cut at a sample boundary": (lambda c, c_flac: c[:c_flac], "after b.txt: no end mark"),
    "bit flipped in a header": (lambda c, c_flac: flip(c, c_flac + 1), "after b.txt: no end mark"),
    "cut inside data": (lambda c, c_flac: c[: c_flac + 700], "cut inside c.flac"),
    "empty": (lambda c, c_flac: b"", "not a tar or is damaged after its start"),
    "an HTML page": (lambda c, c_flac: b"<html>502</html>" * 100, "not a tar or is damaged after its start"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_tar_is_refused(name: str, tar: Path):
    """Cut or overwritten anywhere in its structure, a tar is named with the last member before the damage."""
    damaging, message = DAMAGES[name]
    tar.write_bytes(damaging(tar.read_bytes(), offsets(tar)["c.flac"]))
    with pytest.raises(TarError, match=rf"1 of 1 tars cannot be read to their end.*{message}.*restore"):
        read_inputs([str(tar)], seed=0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_any_damage_gives_an_index_or_one_sentence(changes: list[tuple[int, int]], are_signed: bool):
    """Bytes changed anywhere, in headers with the right checksum too: no other error, no endless loop, no big read."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, content in MEMBERS.items():
            info = tarfile.TarInfo("n" * 120 + name)
            info.size, info.mtime = len(content), 1.5
            file.addfile(info, io.BytesIO(content))
    content = bytearray(stream.getvalue())
    for position, value in changes:
        content[position % len(content)] = value
        start = position % len(content) // 512 * 512
        if are_signed:
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    try:
        index_tar(io.BytesIO(bytes(content)), size_bytes=len(content), name="x.tar")
    except TarError as error:
        assert str(error).startswith("x.tar")


def test_all_damaged_tars_are_named(tmp_path: Path):
    """One message names every damaged tar, so that all can be restored at once."""
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", MEMBERS)
    for number in (0, 2):
        file = tmp_path / f"{number}.tar"
        file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(TarError, match=r"2 of 3 tars .*0\.tar.*2\.tar"):
        read_inputs(tmp_path, seed=0, workers=2)


def test_the_index_points_at_the_bytes(tar: Path):
    """Each audio member is found at its offset, even after headers for names longer than one block."""
    long_name = "folder/" + "n" * 150
    write_tar(tar, {**MEMBERS, f"{long_name}.mp3": b"long" * 99})
    content = tar.read_bytes()
    samples = index_tar(io.BytesIO(content), size_bytes=len(content), name="x.tar")
    assert [sample.key for sample in samples] == ["a", "b", "c", "d", long_name]
    for sample in samples:
        [member] = sample.audio
        expected = MEMBERS.get(f"{sample.key}.flac", b"long" * 99)
        assert content[member.offset : member.offset + member.bytes] == expected


def test_several_audio_files_of_a_sample_are_several_tracks(tmp_path: Path):
    """Each keeps its ending; the labels are those of the sample, and so is the group."""
    members = {"a.mix.wav": b"1", "a.drums.wav": b"2", "a.json": b'{"artist": "x"}', "b.opus": b"3"}
    write_tar(tmp_path / "t.tar", members)
    tracks = {track.track: track for track in read_inputs([f"{tmp_path}/t.tar"], seed=0)}
    assert list(tracks) == ["t/a.drums.wav", "t/a.mix.wav", "t/b"]
    assert [tracks[name].labels for name in tracks] == [{"artist": "x"}, {"artist": "x"}, None]
    for name, content in (("t/a.mix.wav", b"1"), ("t/b", b"3")):
        with local_audio(tracks[name].audio) as file:
            assert file.read_bytes() == content
            assert file.suffix == "." + name.rpartition(".")[2] or name == "t/b"


def test_a_json_with_labels_is_a_line_of_a_list(tmp_path: Path):
    """It may set track, source and split; JSON that is not an object is an error with the tar and the key."""
    line = {"track": "piece 1", "source": "scores", "split": "test", "labels": {"key": "C"}, "group": 7}
    write_tar(tmp_path / "t.tar", {"a.flac": b"x", "a.json": json.dumps(line).encode()})
    [track] = read_inputs([f"{tmp_path}/t.tar"], seed=0)
    assert (track.track, track.source, track.split, track.labels) == ("piece 1", "scores", "test", {"key": "C"})
    for content, message in ((b"[1]", "a.json is not an object of labels but list"), (b"{", "a.json is not JSON")):
        write_tar(tmp_path / "t.tar", {"a.flac": b"x", "a.json": content})
        with pytest.raises(UserError, match=message):
            read_inputs([f"{tmp_path}/t.tar"], seed=0)


ORDERS = {
    "all audio first": ["a.wav", "b.wav", "a.json", "b.json"],
    "all labels first": ["b.json", "a.json", "a.wav", "b.wav"],
    "far apart": ["a.json", "x.wav", "b.wav", "a.wav", "b.JSON"],
}


@pytest.mark.parametrize("order", ORDERS)
def test_labels_are_found_wherever_they_come(order: str, tmp_path: Path):
    """`tar cf x.tar *.wav *.json` labels its tracks as a tar with adjacent members does."""
    contents = {"a": b'{"artist": "x"}', "b": b'{"artist": "y"}'}
    names = ORDERS[order]
    write_tar(tmp_path / "t.tar", {n: contents[n[0]] if n.lower().endswith("json") else n.encode() for n in names})
    tracks = {track.track: track for track in read_inputs([f"{tmp_path}/t.tar"], seed=0)}
    assert tracks["t/a"].labels == {"artist": "x"}
    assert tracks["t/b"].labels == {"artist": "y"}
    assert len(tracks) == sum(name.endswith(".wav") for name in names)
    for key in "ab":
        with local_audio(tracks[f"t/{key}"].audio) as file:
            assert file.read_bytes() == f"{key}.wav".encode()


def test_names_with_dots_and_blanks_keep_their_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A JSON describes the audio of its whole name, else that of its key; one that describes nothing is told."""
    labels = {n: json.dumps({"is": n}).encode() for n in ("Track 2.0 (Clean)", "Track 2.0 (Live)", "take", "take.mix")}
    members = {f"{name}.json": content for name, content in labels.items()}
    members |= {"Track 2.0 (Clean).wav": b"1", "Track 2.0 (Live).wav": b"2", "take.mix.wav": b"3", "take.dry.wav": b"4"}
    write_tar(tmp_path / "t.tar", members | {"take.beats.json": b"[1, 2]"})
    with caplog.at_level(logging.WARNING):
        tracks = {track.track: track.labels for track in read_inputs([f"{tmp_path}/t.tar"], seed=0)}
    assert tracks == {
        "t/Track 2.0 (Clean).wav": {"is": "Track 2.0 (Clean)"},
        "t/Track 2.0 (Live).wav": {"is": "Track 2.0 (Live)"},
        "t/take.mix.wav": {"is": "take.mix"},
        "t/take.dry.wav": {"is": "take"},
    }
    assert (
        "1 JSON members of the tars describe no audio, so they label no track; the first is t/take.beats" in caplog.text
    )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("a.wav", b"x"), ("a.json", b"{}"), ("b.wav", b"y"), ("a.json", b"{}")],
            r"holds a\.json twice, so labels are",
        ),
        ([("a.wav", b"x"), ("a.json", b'{"x": NaN}')], r"a\.json is not JSON \(Out of range float values"),
        ([("a.wav", b"x"), ("a.json", b'{"x": 1e400}')], r"a\.json is not JSON \(Out of range float values"),
        ([("a.wav", b"x"), ("a.json", b"[" * 100_000)], r"a\.json is not JSON"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(members: list[tuple[str, bytes]], message: str, tmp_path: Path):
    """Two JSON members for one track, and values that no shard can hold: the tar and the member are named."""
    with tarfile.open(tmp_path / "t.tar", "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    with pytest.raises(TarError, match=message):
        read_inputs([f"{tmp_path}/t.tar"], seed=0)


def test_members_whose_names_cannot_be_stored_are_named(tmp_path: Path):
    """A name of other bytes than UTF-8 does not end the build; an input of nothing else is an error."""
    strange = os.fsdecode(b"caf\xe9.wav")
    write_tar(tmp_path / "t.tar", {"a.wav": b"x", strange: b"y"})
    passed_over = PassedOver()
    assert [t.track for t in read_inputs([f"{tmp_path}/t.tar"], seed=0, passed_over=passed_over)] == ["t/a"]
    [line] = passed_over.lines()
    assert line == rf"passed over, {NOT_UNICODE}: 1 ({tmp_path}/t.tar member caf\udce9.wav)"
    write_tar(tmp_path / "t.tar", {strange: b"y"})
    with pytest.raises(UserError, match=r"no name of the input is valid Unicode, so no track can be stored; rename"):
        read_inputs([f"{tmp_path}/t.tar"], seed=0)


def test_links_in_a_tar_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """GNU tar stores the second name of a hard-linked file without its bytes: that sample is named."""
    (tmp_path / "a.wav").write_bytes(b"x")
    (tmp_path / "b.wav").hardlink_to(tmp_path / "a.wav")
    with tarfile.open(tmp_path / "t.tar", "w") as file:
        for name in ("a.wav", "b.wav"):
            file.add(tmp_path / name, name)
    with caplog.at_level(logging.WARNING):
        assert [t.track for t in read_inputs([f"{tmp_path}/t.tar"], seed=0)] == ["t/a"]
    assert "1 samples of the tars hold no audio and are left out, the first is t/b" in caplog.text


def test_a_tar_that_cannot_be_read_now_is_not_damaged(tar: Path, monkeypatch: pytest.MonkeyPatch):
    """EIO, or missing rights: the cause is named, and nothing says that the tar must be restored."""

    def failing(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("data.building.tars.index_tar", failing)
    with pytest.raises(TarError, match=r"x\.tar cannot be read now \(Input/output error\); mend this, then run again$"):
        read_inputs([str(tar)], seed=0)


def test_samples_without_audio_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A sample without audio is left out with a warning; a tar without audio is an error."""
    write_tar(tmp_path / "t.tar", {"a.flac": b"x", "b.json": b'{"artist": "x"}', "c.txt": b"words"})
    with caplog.at_level(logging.WARNING):
        assert [t.track for t in read_inputs([f"{tmp_path}/t.tar"], seed=0)] == ["t/a"]
    assert "2 samples of the tars hold no audio and are left out, the first is t/b" in caplog.text
    write_tar(tmp_path / "t.tar", {"c.txt": b"words"})
    with pytest.raises(TarError, match=r"none of the 1 tars holds audio \(.*\.flac.*\)"):
        read_inputs([f"{tmp_path}/t.tar"], seed=0)


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path):
    """Two samples of one key would be one track twice."""
    write_tar(tmp_path / "t.tar", {"a.flac": b"x", "b.flac": b"y", "a.wav": b"z"})
    with pytest.raises(UserError, match=r"two tracks are named 't/a' \(.*member a.flac and .*member a.wav\)"):
        read_inputs([f"{tmp_path}/t.tar"], seed=0)


def test_tars_of_one_name_are_told_apart_by_their_folders(tmp_path: Path):
    """Tracks of tars with equal names in different folders keep the folder in their names."""
    for folder in ("one", "two"):
        write_tar(tmp_path / folder / "x.tar", {"a.flac": b"x"})
    inputs = [f"{tmp_path}/{folder}/x.tar" for folder in ("one", "two")]
    assert [t.track for t in read_inputs(inputs, seed=0)] == ["one/x/a", "two/x/a"]


def test_a_tar_that_changed_since_it_was_indexed_is_noticed(tar: Path):
    """The decoded copy must have the indexed member at its offset."""
    places = [track.audio for track in read_inputs([str(tar)], seed=0)]
    require_members(tar, places)
    write_tar(tar, dict(list(MEMBERS.items())[2:]))
    with pytest.raises(StoreError, match=r"a.flac is not where the index of the tar has it: the tar changed; run"):
        require_members(tar, places)
