"""JSON lines: files that hold one JSON object a line, read and written in this one way.

Lines end at "\\n" and nowhere else. `str.splitlines` would also split at U+2028 and its like, which a JSON string may
hold.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pupujepa.durable import atomic_file
from pupujepa.errors import UserError

Row = dict[str, Any]
_REMEDY = "restore the file, or make it again"


class LineError(UserError):
    """A line that is not a JSON object; the message names the file and the line."""


def encode_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Returns the lines of rows, in UTF-8."""
    # of a lone surrogate, which a file name may hold, this makes the escape that JSON has for it
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode(errors="backslashreplace")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of rows, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(encode_rows(rows))


def numbered_rows(text: str, *, origin: str, remedy: str = _REMEDY) -> Iterator[tuple[str, Row]]:
    """Yields ("origin:line number", row); blank lines are skipped.

    Args:
        origin: name of the file.
        remedy: what the user can do about a broken line.

    Raises:
        LineError: a line is not a JSON object.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{origin}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise LineError(f"{where}: not JSON ({error}); {remedy}") from error
        if not isinstance(row, dict):
            raise LineError(f"{where}: not an object but {line.strip()[:40]!r}; {remedy}")
        yield where, row


def parse_rows(text: str, *, origin: str, growing: bool = False) -> list[Row]:
    """Returns the rows of a text.

    Args:
        growing: a writer appends to it, or was killed at that: a last line without its end is left out.

    Raises:
        LineError: a line is not a JSON object.
    """
    text = text[: text.rfind("\n") + 1] if growing else text
    return [row for _, row in numbered_rows(text, origin=origin)]


def read_rows(path: Path, *, growing: bool = False) -> list[Row]:
    """Returns the rows of a file, none when there is no file; else as `parse_rows`."""
    return parse_rows(path.read_text(encoding="utf-8"), origin=str(path), growing=growing) if path.is_file() else []
