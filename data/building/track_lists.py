"""Lists of tracks: JSONL with one track a line, or CSV and TSV with a header.

A line needs the `path` of an audio file: relative to the list, absolute, or a url. Optional are `track` (unique name;
default: the path without its ending, and the stretch), `start` and `end` (seconds; the track is a stretch of the file),
`source`, `split`, `group` and `labels`, an object in JSONL. In CSV every other column is a label: a number if it reads
as JSON's number, else text; an empty cell is a missing label.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from data.building.tracks import AudioPlace, ListEntry
from data.shards.manifest import SPLITS
from data.store.files import Location
from data.store.store import beside
from pupujepa.track_rows import ListError, ListRow, list_rows, list_text

LIST_SUFFIXES = (".jsonl", ".csv", ".tsv")
_FIELDS = ("track", "path", "start", "end", "source", "split", "group")
_EXAMPLE = 'write {"track": "name", "path": "file.wav", "labels": {"artist": "name"}, ...}'
_TABLE_REMEDY = "write the path of an audio file, and seconds as numbers"


def read_list(content: bytes, *, url: Location, source: str) -> list[ListEntry]:
    """Returns the tracks of a list, in order.

    Args:
        content: of the list, in UTF-8.
        url: of the list; its ending is the format (default: JSONL).
        source: the collection of lines without one.

    Raises:
        ListError: not UTF-8, no header, or an invalid line. LineError: a line is not a JSON object.
    """
    text, suffix = list_text(content, origin=url), PurePosixPath(url).suffix.lower()
    rows = _table_rows(text, url, delimiter="\t" if suffix == ".tsv" else ",") if suffix in (".csv", ".tsv") else None
    rows = rows or list_rows(text, origin=url, remedy=_EXAMPLE)
    return _grouped([_entry(row, url=url, source=source) for row in rows])


def check_split(split: Any, where: str) -> str | None:
    """Returns the split, or None if absent. Raises ListError if it is unknown."""
    if split is not None and split not in SPLITS:
        raise ListError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}")
    return split


def _table_rows(text: str, url: Location, *, delimiter: str) -> Iterator[ListRow]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = list(reader.fieldnames or ())
        if "path" not in columns or len(set(columns)) != len(columns):
            raise ListError(
                f"{url} begins with the columns {columns}, so no line can be read; name each column once, with path "
                f"and any of {', '.join(_FIELDS)}; the others are labels"
            )
        for row in reader:
            where = f"{url} line {reader.line_num}"
            if None in row or None in row.values():  # too many or too few cells
                raise ListError(f"{where} does not have the header's {len(columns)} cells; quote any {delimiter}")
            cells = {name: cell for name, cell in row.items() if cell != ""}
            fields: dict[str, Any] = {name: cells.pop(name) for name in _FIELDS if name in cells}
            fields["labels"] = {name: _cell_value(cell, f"{where}: {name}") for name, cell in cells.items()} or None
            yield ListRow(where, fields, _TABLE_REMEDY)
    except csv.Error as error:
        raise ListError(f"{url} line {reader.line_num} is not a row of a table ({error}); fix its quotes") from error


def _cell_value(cell: str, where: str) -> Any:
    """Returns a cell as a number if JSON would write it so, else as text: 007 stays text."""
    try:
        value = json.loads(cell, parse_constant=lambda name: name)  # NaN and Infinity stay text
    except (ValueError, RecursionError):
        return cell
    if value in (math.inf, -math.inf):
        raise ListError(f"{where} is {cell[:40]}, beyond the largest number; write a finite one")
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else cell


def _entry(row: ListRow, *, url: Location, source: str) -> tuple[str, ListEntry]:
    """Returns the path as in the list, and the track; its group is "" if the list has none."""
    path, start_s, end_s = row.text("path"), row.seconds("start"), row.seconds("end")
    if "\0" in path or not PurePosixPath(path).name:
        raise ListError(f"{row.where}: {path!r} is not the path of a file; write one")
    if not (0 <= (start_s or 0.0) < (math.inf if end_s is None else end_s)):
        raise ListError(
            f"{row.where}: the stretch from {start_s or 0.0:g} to {end_s} s of {path} holds no audio; write start and "
            "end in seconds, 0 <= start < end"
        )
    entry = ListEntry(
        track=_name(path, start_s, end_s) if row.fields.get("track") is None else row.text("track"),
        audio=AudioPlace(beside(url, path), start_s or 0.0, end_s),
        source=row.name("source") or source,
        split=check_split(row.fields.get("split"), row.where),
        group=row.name("group") or "",
        labels=row.labels(),
    )
    return path, entry


def _grouped(found: list[tuple[str, ListEntry]]) -> list[ListEntry]:
    """Returns the tracks with missing groups set: its own, or one per file with several tracks."""
    tracks_of_file = Counter(path for path, _ in found)

    def group(path: str, entry: ListEntry) -> str:
        is_stretch = entry.audio.start_s > 0 or entry.audio.end_s is not None
        return entry.group or (path if is_stretch or tracks_of_file[path] > 1 else entry.track)

    return [replace(entry, group=group(path, entry)) for path, entry in found]


def _name(path: str, start_s: float | None, end_s: float | None) -> str:
    """Returns the default name of a track."""
    stem = PurePosixPath(path.partition("://")[2] or path).with_suffix("").as_posix().lstrip("/")
    if start_s is None and end_s is None:
        return stem
    return f"{stem}@{start_s or 0.0:g}-{'end' if end_s is None else f'{end_s:g}'}"
