"""The audio files of a folder are found by suffix, and others are counted."""

from collections import Counter

import pytest

from pupujepa.audio.find import find_audio, told_passed_over
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
    assert not passed_over


def test_what_is_passed_over_is_counted_by_suffix(tmp_path):
    """Files of a folder without an audio suffix are counted; a file given directly is always taken."""
    fill(tmp_path, "a.wav", "b.m4a", "live/c.M4A", "cover.jpg", "README", ".hidden")
    files, passed_over = find_audio([tmp_path])
    assert [file.name for file in files] == ["a.wav"]
    assert passed_over == Counter({".m4a": 2, ".jpg": 1, "": 2})
    told = "passed over, no audio by their suffix: 2 without one, 2 .m4a, 1 .jpg"
    assert told_passed_over(passed_over) == told
    files, passed_over = find_audio([tmp_path / "b.m4a"])
    assert [file.name for file in files] == ["b.m4a"]
    assert not passed_over


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
    assert not passed_over
