"""The audio files of a folder are found by suffix and through links; others are counted or named."""

import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from pupujepa.audio.find import PassedOver, find_audio
from pupujepa.audio.read import AUDIO_SUFFIXES
from pupujepa.errors import UserError


def fill(folder, *names):
    """Makes empty files and their folders."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_every_audio_suffix_is_found_in_any_case(tmp_path):
    """Each of the suffixes is found in small, capital and mixed letters, in folders below too."""
    forms = (str.lower, str.upper, str.title)
    names = [f"{i}/a{form(suffix)}" for suffix in AUDIO_SUFFIXES for i, form in enumerate(forms)]
    files, passed_over = find_audio([fill(tmp_path, *names)])
    assert sorted(file.name for file in files) == sorted(names)
    assert passed_over == PassedOver()


def test_what_is_passed_over_is_counted_by_suffix(tmp_path):
    """Files of a folder without an audio suffix are counted; a file given directly is always taken."""
    fill(tmp_path, "a.wav", "b.m4a", "live/c.M4A", "cover.jpg", "README", ".hidden")
    files, passed_over = find_audio([tmp_path])
    assert [file.name for file in files] == ["a.wav"]
    assert passed_over == PassedOver(Counter({".m4a": 2, ".jpg": 1, "": 2}))
    told = "passed over, not audio that is read (convert music to wav, flac, ogg or mp3): "
    told += "2 without one, 2 .m4a, 1 .jpg"
    assert passed_over.lines() == [told]
    files, passed_over = find_audio([tmp_path / "b.m4a"])
    assert [file.name for file in files] == ["b.m4a"]
    assert passed_over == PassedOver()


def test_links_are_followed_once_or_named(tmp_path):
    """Linked albums are searched; loops, second ways to a folder and links that lead nowhere are named."""
    fill(tmp_path, "far/x.wav", "far/deep/y.wav", "in/own/z.wav")
    folder = tmp_path / "in"
    (folder / "album").symlink_to(tmp_path / "far")
    (folder / "again").symlink_to(folder / "own")
    (folder / "own" / "loop").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    (folder / "song.wav").symlink_to(tmp_path / "far" / "x.wav")
    (folder / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (folder / "itself.wav").symlink_to(folder / "itself.wav")
    os.mkfifo(folder / "pipe.wav")
    files, passed_over = find_audio([folder])
    assert [file.name for file in files] == ["album/deep/y.wav", "album/x.wav", "own/z.wav", "song.wav"]
    assert {reason: sorted(names) for reason, names in passed_over.named.items()} == {
        "links to a folder that is searched already": ["again", "own/loop", "up"],
        "links that lead nowhere": ["gone.wav", "itself.wav"],
        "neither files nor folders": ["pipe.wav"],
    }
    assert "passed over, neither files nor folders: 1 (pipe.wav)" in passed_over.lines()


def test_files_of_a_mac_and_names_that_cannot_be_stored_are_named(tmp_path):
    """`._a.wav` is no music; a name of other bytes than UTF-8 does not end the search of its folder."""
    fill(tmp_path, "a.wav", "._a.wav", *(f"live/._{i}.wav" for i in range(6)), os.fsdecode(b"caf\xe9.wav"))
    files, passed_over = find_audio([tmp_path])
    assert [file.name for file in files] == ["a.wav"]
    assert passed_over.lines() == [
        "passed over, ._ files of macOS: 7 (._a.wav, live/._0.wav, "
        "live/._1.wav, live/._2.wav, live/._3.wav and 2 more)",
        "passed over, names that are not valid Unicode, rename them: 1 (caf\\udce9.wav)",
    ]
    with pytest.raises(UserError, match="the name is not valid Unicode, so it cannot be stored; rename the file"):
        find_audio([tmp_path / os.fsdecode(b"caf\xe9.wav")])


def test_a_folder_that_cannot_be_read_is_no_empty_folder(tmp_path, monkeypatch):
    """Files that a search cannot see would be lost, so it stops and names the folder."""
    fill(tmp_path, "a.wav", "closed/b.wav")
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr("pupujepa.audio.find.os.scandir", refusing)
    with pytest.raises(UserError, match=r"closed cannot be read \(Permission denied\), so its files would be missing"):
        find_audio([tmp_path])


def test_a_folder_of_something_else_says_what_it_holds(tmp_path):
    """A folder without audio is an error with the expected and the found suffixes."""
    fill(tmp_path, "b.m4a", "c.m4a")
    with pytest.raises(UserError, match=r"holds no audio files \(\.aif, .*\.wav\); passed over, .*: 2 \.m4a"):
        find_audio([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no audio files \(\.aif, [a-z0-9., ]*\.wav\)$"):
        find_audio([tmp_path / "empty"])


def test_a_folder_named_like_audio_is_no_audio(tmp_path):
    """A folder `a.wav` is searched and not embedded."""
    files, passed_over = find_audio([fill(tmp_path, "a.wav/b.wav")])
    assert [file.name for file in files] == ["a.wav/b.wav"]
    assert passed_over == PassedOver()
