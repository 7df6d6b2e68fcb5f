"""Rows of track lists: one reader for the lists of builds, of evaluation and of MARBLE.

Whatever a list holds that cannot be meant is refused when it is read, with the line: features take hours, and a label
that is not finite would end them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pupujepa.errors import UserError
from pupujepa.json_lines import finite_row, numbered_rows


class ListError(UserError):
    """An invalid list; the message names file and line."""


@dataclass(frozen=True)
class ListRow:
    """One line of a list.

    Attributes:
        where: file and line.
        remedy: the end of the error messages.
    """

    where: str
    fields: Mapping[str, Any]
    remedy: str

    def text(self, name: str) -> str:
        """Returns a field that must be there and be text, as ids and paths must."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value:
            raise self.error(f"{name} is {_shown(value)}, not text")
        return value

    def name(self, name: str) -> str | None:
        """Returns a text, or a number as text; None if absent."""
        value = self.fields.get(name)
        if isinstance(value, bool | list | dict):
            raise self.error(f"{name} is {_shown(value)}, not text")
        return None if value is None else str(value)

    def seconds(self, name: str) -> float | None:
        """Returns a finite number, also of a text such as "1.5"; None if absent."""
        value = self.fields.get(name)
        if value is None:
            return None
        try:
            seconds = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            seconds = math.nan
        if not math.isfinite(seconds):
            raise self.error(f"{name} is {_shown(value)}, not a number of seconds")
        return seconds

    def labels(self) -> dict[str, Any] | None:
        """Returns the labels, an object in JSON; None if absent."""
        value = self.fields.get("labels")
        if value is not None and not isinstance(value, dict):
            raise self.error(f"labels are {_shown(value)}, not an object")
        return value

    def error(self, reason: str) -> ListError:
        """Returns the error of this line."""
        return ListError(f"{self.where} is not a track ({reason}); {self.remedy}")


def list_text(content: bytes, *, origin: str) -> str:
    """Returns the text of a list, without the byte order mark that spreadsheets write.

    Raises:
        ListError: not UTF-8, with the line.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ListError(
            f"{origin} is not a UTF-8 list (line {line}: byte 0x{content[error.start]:02x}); save it as UTF-8, or give "
            "a folder of audio"
        ) from error


def list_rows(text: str, *, origin: str, remedy: str) -> Iterator[ListRow]:
    """Yields the rows of a list in JSON lines.

    Raises:
        LineError: a line is not a JSON object, repeats a name, or holds NaN or Infinity.
    """
    for where, row in numbered_rows(text, origin=origin, remedy=remedy, parse=finite_row):
        yield ListRow(where, row, remedy)


def _shown(value: Any) -> str:
    return f"{str(value)[:40]!r}" if isinstance(value, str) else str(value)[:40]
