"""JSON lines: files with one JSON object per line.

Lines end at "\\n" only. `str.splitlines` would also split at U+2028, which a JSON string may contain.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    # a file name may hold a lone surrogate, which UTF-8 lacks; backslashreplace writes its JSON escape
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode(errors="backslashreplace")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of rows, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(encode_rows(rows))


def finite_row(line: str) -> Any:
    """Returns the value of a JSON text whose numbers are finite.

    Raises ValueError for NaN, Infinity, 1e400, and a name that appears twice in an object.
    """
    return json.loads(line, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_unique)


def numbered_rows(
    text: str, *, origin: str, remedy: str = _REMEDY, parse: Callable[[str], Any] = json.loads
) -> Iterator[tuple[str, Row]]:
    """Yields ("origin:line number", row); blank lines are skipped.

    Args:
        origin: name of the file.
        remedy: the end of the error message for a broken line.
        parse: of a line; logs hold NaN, which lists must not (`finite_row`).

    Raises:
        LineError: a line is not a JSON object.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{origin}:{number}"
        try:
            row = parse(line)
        except (ValueError, RecursionError) as error:
            raise LineError(f"{where}: not JSON ({error}); {remedy}") from error
        if not isinstance(row, dict):
            raise LineError(f"{where}: not an object but {line.strip()[:40]!r}; {remedy}")
        yield where, row


def parse_rows(text: str, *, origin: str, growing: bool = False) -> list[Row]:
    """Returns the rows of a text.

    Args:
        growing: omit a last line without its end: a writer is appending, or was killed.

    Raises:
        LineError: a line is not a JSON object.
    """
    text = text[: text.rfind("\n") + 1] if growing else text  # "" without any line end
    return [row for _, row in numbered_rows(text, origin=origin)]


def read_rows(path: Path, *, growing: bool = False) -> list[Row]:
    """Returns the rows of a file, as `parse_rows` does, or none if the file does not exist."""
    return parse_rows(path.read_text(encoding="utf-8"), origin=str(path), growing=growing) if path.is_file() else []


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("one name appears twice")
    return row
