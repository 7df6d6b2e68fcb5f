"""Lists of tracks: valid lines are read, and errors name the invalid ones."""

import pytest

from data.building.track_lists import ListError, read_list
from pupujepa.json_lines import LineError

URL = "s3://bucket/music/list"


def read(text: str, suffix: str = ".csv"):
    return read_list(text.encode(), url=URL + suffix, source="music")


def test_paths_are_relative_to_the_list_absolute_or_urls():
    """A track without a name is named by its path and its stretch."""
    found = read("path,start,end\na/b.c.flac,,\n/abs/x.wav,1.5,\ns3://other/y.mp3,0,30\n")
    assert [entry.audio.url for entry in found] == ["s3://bucket/music/a/b.c.flac", "/abs/x.wav", "s3://other/y.mp3"]
    assert [entry.track for entry in found] == ["a/b.c", "abs/x@1.5-end", "other/y@0-30"]
    assert [(e.audio.start_s, e.audio.end_s) for e in found] == [(0.0, None), (1.5, None), (0.0, 30.0)]


def test_cells_are_numbers_only_where_json_has_numbers():
    """Leading zeros, words and dates stay text; an empty cell is no label; a byte order mark is ignored."""
    [entry] = read("\ufeffpath,bpm,n,code,word,truth,none,infinite\nx.wav,120.5,7,007,a,true,,Infinity\n")
    assert entry.labels == {"bpm": 120.5, "n": 7, "code": "007", "word": "a", "truth": "true", "infinite": "Infinity"}


def test_tabs_and_json_say_the_same():
    """A row with tabs, and a line of JSON, give the track of a row with commas."""
    [comma] = read("path,split,group,mood\nx.wav,test,7,sad\n")
    [tab] = read("path\tsplit\tgroup\tmood\nx.wav\ttest\t7\tsad\n", ".tsv")
    [line] = read(
        '{"path": "x.wav", "split": "test", "group": 7, "labels": {"mood": "sad"}, "duration_s": 3}', ".jsonl"
    )
    assert comma == tab == line


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        ("track,start\n", ".csv", r"list.csv begins with the columns \['track', 'start'\]"),
        ("path,path\n", ".csv", "name each column once, with path and"),
        ("path,mood\nx.wav\n", ".csv", r"line 2 does not have the header's 2 cells"),
        ("path\nx.wav,sad\n", ".csv", r"line 2 does not have the header's 1 cells; quote any ,"),
        ('path\n"x.wav\n', ".csv", r"is not a row of a table \(unexpected end of data\)"),
        ("path,start,end\nx.wav,5,5\n", ".csv", r"line 2: the stretch from 5 to 5.0 s of x.wav holds no audio"),
        ("path,start\nx.wav,-1\n", ".csv", "0 <= start < end"),
        ("path,start\nx.wav,nan\n", ".csv", "0 <= start < end"),
        ("path,start\nx.wav,two\n", ".csv", r"line 2 is not a track \(ValueError"),
        ("path,split\nx.wav,dev\n", ".csv", "line 2: split 'dev' is not one of train, valid, test"),
        ('{"path": "x.wav", "labels": "sad"}', ".jsonl", "labels are 'sad', not an object"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named(text: str, suffix: str, message: str):
    """The message names the list, the line and the remedy."""
    with pytest.raises(ListError, match=message):
        read(text, suffix)


@pytest.mark.parametrize(("line", "message"), [("{", "not JSON"), ("[1]", r"not an object but '\[1\]'")])
def test_a_line_that_is_no_object_is_named(line: str, message: str):
    """The message names the list, the line and the remedy."""
    with pytest.raises(LineError, match=rf'list\.jsonl:2: {message}.*; write {{"track"'):
        read('{"path": "x.wav"}\n' + line, ".jsonl")


def test_a_list_that_is_no_text_is_named():
    """An audio file or a table of a spreadsheet program given as a list is refused."""
    with pytest.raises(ListError, match=r"list.csv is not a UTF-8 list .*save it as UTF-8, or give a folder"):
        read_list(b"path\n\xff\xfe\x00", url=URL + ".csv", source="music")
