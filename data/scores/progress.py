"""How far a long piece of work is: a bar on a terminal, a line now and then in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
_LOG_EVERY_S = 15.0


def progress(items: Iterable[T], *, total: int, what: str) -> Iterator[T]:
    """Yields the items."""
    bar = sys.stderr.isatty()
    begun_s = told_s = time.monotonic()
    for done, item in enumerate(tqdm(items, total=total, desc=what, disable=not bar), 1):
        yield item
        now_s = time.monotonic()
        if not bar and now_s - told_s >= _LOG_EVERY_S and done < total:
            told_s = now_s
            _LOG.info("%s: %d of %d", what, done, total)
    if total:
        _LOG.info("%s: %d in %.1f s", what, total, time.monotonic() - begun_s)
