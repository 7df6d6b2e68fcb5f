"""One save at a time, in a thread of its own; what it comes to is a value, since ranks must agree on it."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from distributed.fencing import SupersededError
from pupujepa.errors import UserError


@dataclass(frozen=True)
class Outcome:
    """What a task came to: `error` is a sentence, "" if it succeeded; `result` is what it returned then.

    superseded: the error is that the run was started again.
    """

    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    superseded: bool = False


class BackgroundTask:
    """Runs one task after the other in a thread. Full disks, refused rights and stores that fail become an Outcome."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[Outcome] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the task that was started has ended."""
        return self._running is not None and self._running.done()

    def start(self, task: Callable[[], dict[str, Any]]) -> None:
        """Starts a task; the one before must have ended."""
        self._running = self._thread.submit(outcome_of, task)

    def outcome(self) -> Outcome:
        """Waits for the task, and returns what it came to; any other error than those named here is raised."""
        assert self._running is not None, "no task was started"
        outcome = self._running.result()
        self._running = None
        return outcome


def outcome_of(task: Callable[[], dict[str, Any]]) -> Outcome:
    """Runs a task here and now."""
    try:
        return Outcome(task())
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return Outcome(error=f"{error.strerror or error}{where}")
    except UserError as error:
        return Outcome(error=str(error), superseded=isinstance(error, SupersededError))
