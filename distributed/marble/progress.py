"""How far a long step is: a bar on a terminal, a log line now and then elsewhere."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

log = logging.getLogger(__name__)

LOG_EVERY_S = 15.0


class Progress:
    """Counts units of work; silent unless `shown` (the first rank's)."""

    def __init__(self, title: str, *, total: int, unit: str, shown: bool):
        self._title, self._total, self._unit, self._shown = title, total, unit, shown
        self._done = 0
        self._started = self._logged = time.monotonic()
        self._bar = tqdm(total=total, desc=title, unit=unit, disable=not (shown and sys.stderr.isatty()))

    def advance(self, count: int = 1) -> None:
        """Adds finished units."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._shown and self._bar.disable and now - self._logged > LOG_EVERY_S:
            self._logged = now
            log.info("%s: %d of %d %ss", self._title, self._done, self._total, self._unit)

    def say(self, what: str) -> None:
        """Names what is being done, behind the bar."""
        self._bar.set_postfix_str(what)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._shown and kind is None:
            log.info("%s: %d %ss in %.1f s", self._title, self._done, self._unit, time.monotonic() - self._started)
