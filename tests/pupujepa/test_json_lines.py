"""JSON lines: rows survive a round trip, a torn end is recognised, and errors name the broken line."""

import pytest

from pupujepa.json_lines import LineError, encode_rows, parse_rows, read_rows, write_rows


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0c", "\x1c", "é", "\udcff", "\n"])
def test_any_character_of_a_string_comes_back(tmp_path, character):
    """Rows may hold other line ends, and half a surrogate pair, as file names that are not UTF-8 do."""
    rows = [{"track": f"a{character}b", "bpm": 0.1 + 0.2}, {"track": "c"}]
    write_rows(tmp_path / "x.jsonl", rows)
    assert read_rows(tmp_path / "x.jsonl") == rows
    assert encode_rows(rows).count(b"\n") == 2


def test_a_separator_that_another_wrote_as_it_is_splits_no_line():
    """JSON allows U+2028 within a string."""
    assert parse_rows('{"a": "x\u2028y"}\n{"a": 2}\n', origin="x") == [{"a": "x\u2028y"}, {"a": 2}]


def test_a_torn_end_is_left_out_of_a_growing_file_and_refused_elsewhere(tmp_path):
    """Half a line that happens to be JSON is still half a line."""
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a"')
    assert read_rows(tmp_path / "x.jsonl", growing=True) == [{"a": 1}]
    assert parse_rows('{"a": 1}\n{"a": 2}', origin="x", growing=True) == [{"a": 1}]
    with pytest.raises(LineError, match=r"x\.jsonl:2: not JSON \(.*; restore the file, or make it again"):
        read_rows(tmp_path / "x.jsonl")


@pytest.mark.parametrize(("line", "said"), [("{", "not JSON"), ("[1]", r"not an object but '\[1\]'")])
def test_a_broken_line_is_named_even_in_a_growing_file(line, said):
    """Blank lines count; the last line may lack its end."""
    text = f'{{"a": 1}}\r\n\n{line}\n{{"a": 2}}'
    for growing in (False, True):
        with pytest.raises(LineError, match=f"x:3: {said}"):
            parse_rows(text, origin="x", growing=growing)


def test_no_file_holds_no_rows(tmp_path):
    """A log that was not begun yet is empty."""
    assert read_rows(tmp_path / "none.jsonl") == []
