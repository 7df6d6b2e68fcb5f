"""Lists of tracks: valid lines are read, and errors name the invalid ones."""

import json
import math
import random

import pytest

from data.building.track_lists import ListError, read_list
from pupujepa.errors import UserError
from pupujepa.json_lines import LineError, encode_rows

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
        ("path,start\nx.wav,nan\n", ".csv", r"line 2 is not a track \(start is 'nan', not a number of seconds\)"),
        ("path,start\nx.wav,two\n", ".csv", r"line 2 is not a track \(start is 'two', not a number of seconds\)"),
        ("path,start\nx.wav,3:20\n", ".csv", r"line 2 is not a track \(start is '3:20', not a number of seconds\)"),
        ("path,end\nx.wav,1e400\n", ".csv", r"line 2 is not a track \(end is '1e400', not a number of seconds\)"),
        ("path,bpm\nx.wav,5\ny.wav,-1e400\n", ".csv", r"list.csv line 3: bpm is -1e400, beyond the largest number"),
        ("path,bpm\n,5\n", ".csv", r"line 2 is not a track \(path is None, not text\)"),
        ("path,split\nx.wav,dev\n", ".csv", "line 2: split 'dev' is not one of train, valid, test"),
        ('{"path": "x.wav", "labels": "sad"}', ".jsonl", "labels are 'sad', not an object"),
        (
            '{"path": "x.wav", "labels": ["a"]}',
            ".jsonl",
            r"list.jsonl:1 is not a track \(labels are \['a'\], not an object",
        ),
        ('{"path": ["x.wav"]}', ".jsonl", r"path is \['x.wav'\], not text"),
        ('{"path": "x.wav", "track": 1}', ".jsonl", "track is 1, not text"),
        ('{"path": "x.wav", "group": {}}', ".jsonl", "group is {}, not text"),
        ('{"path": "x.wav", "split": ["train"]}', ".jsonl", r"split \['train'\] is not one of"),
        ('{"path": "x.wav", "end": true}', ".jsonl", "end is True, not a number of seconds"),
        ('{"path": "x.wav", "end": 1' + "0" * 400 + "}", ".jsonl", "end is 10+, not a number of seconds"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named(text: str, suffix: str, message: str):
    """The message names the list, the line and the remedy."""
    with pytest.raises(ListError, match=message):
        read(text, suffix)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", r"not an object but '\[1\]'"),
        ('{"path": "a.wav", "end": Infinity}', r"not JSON \(Infinity is not finite\)"),
        ('{"path": "a.wav", "labels": {"x": [NaN]}}', r"not JSON \(NaN is not finite\)"),
        ('{"path": "a.wav", "start": -1e400}', r"not JSON \(-1e400 is not finite\)"),
        ('{"path": "a.wav", "path": "b.wav"}', r"not JSON \(one name appears twice\)"),
        ('{"path": ' + "[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_is_no_object_is_named(line: str, message: str):
    """The message names the list, the line and the remedy."""
    with pytest.raises(LineError, match=rf'list\.jsonl:2: {message}.*; write {{"track"'):
        read('{"path": "x.wav"}\n' + line, ".jsonl")


def test_a_list_that_is_no_text_is_named():
    """An audio file or a table of a spreadsheet program given as a list is refused."""
    with pytest.raises(
        ListError, match=r"list.csv is not a UTF-8 list \(line 2: byte 0xff\); save it as UTF-8, or give a folder"
    ):
        read_list(b"path\n\xff\xfe\x00", url=URL + ".csv", source="music")


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_only_a_line_end_ends_a_line(character: str):
    """Titles copied from the web hold other separators, which `str.splitlines` would take for line ends."""
    row = {"path": f"a{character}b.wav", "labels": {"title": f"one{character}two"}}
    [line] = read(json.dumps(row, ensure_ascii=False), ".jsonl")
    [cell] = read(f"path,title\na{character}b.wav,one{character}two\n")
    assert line == cell
    assert line.labels == row["labels"]


def test_damaged_lists_end_in_one_sentence():
    """A thousand damaged lists: read as something, or refused; never a traceback, never a hang."""
    rng = random.Random(0)
    rows = [{"path": "a.wav", "track": "a", "start": 1.5, "end": 3, "labels": {"x": [1, None]}, "split": "train"}]
    table = b'path,track,start,end,split,x\na.wav,"a",1.5,3,train,0.5\n'
    for suffix, whole in ((".jsonl", encode_rows(rows * 2)), (".csv", table), (".tsv", table.replace(b",", b"\t"))):
        for _ in range(400):
            content = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(content))
                rubbish = [
                    bytes([rng.randrange(256)]),
                    b"NaN",
                    b"1e999",
                    b'"',
                    b"\\ud800",
                    b"[[",
                    b"{}",
                    b"true",
                    b"\n",
                ]
                content[at : at + rng.randint(0, 4)] = rng.choice(rubbish)
            try:
                entries = read_list(bytes(content), url=URL + suffix, source="music")
                assert all(
                    0 <= e.audio.start_s < (e.audio.end_s or math.inf) < math.inf or not e.audio.end_s for e in entries
                )
            except UserError as error:
                assert str(error).startswith(URL), error
