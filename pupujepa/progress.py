"""Progress of long work: a bar on a terminal, a plain line every few seconds in a log file."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_EVERY_S = 10.0  # between two lines of a log file


class _Messages:
    """Standard error whose lost output is no error: messages must not end the work.

    Output is lost in a closed pipe, on a full disk, or with a terminal that is gone.
    """

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


_MESSAGES = _Messages()


def follow(items: Iterable[T], *, total: int, title: str, unit: str) -> Iterator[T]:
    """Yields the items and counts each as done when the next one is requested."""
    with Progress(total, title=title, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()


def write_line(line: str) -> None:
    """Writes a line to stderr, above the bar if there is one."""
    tqdm.write(line, file=_MESSAGES)  # type: ignore[arg-type]


class Progress:
    """A context manager that counts finished items and shows the remaining time.

    Args:
        title: name of the work, e.g. "features".
        unit: of the items, e.g. "tracks".
        shown: False counts silently, as all ranks but the first do.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        total: int,
        *,
        title: str,
        unit: str,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.title, self.unit, self.done = total, title, unit, 0
        self._skipped = 0
        self._note = ""
        self._clock, self._shown = clock, shown
        self._started_at = self._shown_at = clock()
        shape = {"disable": not (shown and sys.stderr.isatty()), "dynamic_ncols": True}
        self._bar = tqdm(total=total, desc=title, unit=f" {unit}", file=_MESSAGES, **shape)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.disable and self.done:  # a log gets a last line, also within _EVERY_S of the one before
            self._line(self._note)
        self.close()

    @property
    def has_bar(self) -> bool:
        """True on a terminal."""
        return not self._bar.disable

    @property
    def done_now(self) -> int:
        """Items done since the start, without those of an earlier run."""
        return self.done - self._skipped

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return max(self._clock() - self._started_at, 1e-9)  # a divisor of rates, so never 0

    def skip(self, count: int) -> None:
        """Counts items of an earlier run, which do not enter the rate."""
        self.done += count
        self._skipped += count
        if not self._bar.disable:
            self._bar.initial += count  # tqdm excludes `initial` from its rate
            self._bar.n += count
            self._bar.refresh()

    def advance(self, count: int = 1, *, note: str = "") -> None:
        """Counts `count` items as done and shows `note`, e.g. a rate in the user's own unit."""
        self.done += count
        self._note = note
        if self._bar.disable:
            if self._clock() - self._shown_at >= _EVERY_S:
                self._line(note)
            return
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)

    def say(self, note: str) -> None:
        """Shows a note behind the bar."""
        self._bar.set_postfix_str(note)

    def close(self) -> None:
        """Closes the bar and leaves it on the screen; a `with` statement also writes the last line."""
        self._bar.close()

    def _line(self, note: str) -> None:
        if not self._shown:
            return
        self._shown_at = self._clock()
        left_s = self.elapsed_s / max(self.done_now, 1) * (self.total - self.done)
        rest = f", about {_duration(left_s)} left" if self.done < self.total else f" in {_duration(self.elapsed_s)}"
        note = f", {note}" if note else ""
        _MESSAGES.write(f"{self.title}: {self.done}/{self.total} {self.unit}{rest}{note}\n")
        _MESSAGES.flush()


def _duration(seconds: float) -> str:
    minutes, rest_s = divmod(round(seconds), 60)
    hours, rest_min = divmod(minutes, 60)
    if hours:
        return f"{hours} h {rest_min} min"
    return f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"
