"""Fencing: every start of a run takes the next generation, and a leftover of an older start writes nothing any more.

The lock of the run directory (run/directory.lock_run) keeps two living starts apart. It is lost with its node: when
the run has been started again elsewhere and the node comes back, the old rank 0 believes that it still trains. Before
it publishes a checkpoint or appends a row it looks whether its generation is the newest, and stops when it is not.

A generation is a file, RUN/generations/0000003, made with O_EXCL; beside checkpoints in an object store, an object made
on condition that there is none. A store that ignores the condition lets two starts take one number; the later writer's
token stays, and the earlier one finds at its next look that the number is not its own.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.store.store import MissingObjectError, Store, open_store
from distributed.processes.collectives import SupersededError
from distributed.run.wandb import FINISHED
from pupujepa.errors import UserError

GENERATIONS = "generations"


@dataclass(frozen=True)
class Fence:
    """The generation that this start of a run has taken, in `store`.

    beside: the one that it has taken in its run directory, where the checkpoints lie elsewhere.
    """

    store: Store
    generation: int
    token: str
    beside: "Fence | None" = None

    @property
    def near(self) -> "Fence":
        """The one on a file system, which answers at once."""
        return self.beside or self

    def require_current(self) -> None:
        """Returns if no newer start of the run exists.

        Raises:
            SupersededError: there is one, which is named.
            StoreError: the store cannot be asked.
        """
        if self.beside is not None:
            self.beside.require_current()
        newest = max(generations(self.store), default=0)
        by = read_generation(self.store, newest)
        if newest > self.generation or by.get("token") != self.token:
            raise SupersededError(
                f"generation {self.generation} of the run at {self.store.url} is over: generation {newest} was started"
                f"{_where(by)}; this process (pid {os.getpid()} on {socket.gethostname()}) is a leftover and writes "
                f"nothing any more; end it if it does not end by itself"
            )


class FencedSink:
    """The first of a run's sinks: stops a leftover before it appends a row to metrics.jsonl."""

    def __init__(self, fence: Fence):
        # a row is no reason to ask an object store
        self._fence = fence.near

    def write(self, row: Mapping[str, Any]) -> None:
        """Raises SupersededError when the run was started again since."""
        self._fence.require_current()

    def close(self, outcome: str = FINISHED) -> None:
        """Nothing is held."""


def take_generation(root: Path | str, *, facts: Mapping[str, Any]) -> Fence:
    """Takes the next generation of a run for this start of it. Rank 0 alone.

    Args:
        root: the run directory, or the url of its checkpoints.
        facts: about this start, for those who meet it later.

    Raises:
        UserError: nothing can be written there.
    """
    store = open_store(f"{str(root).rstrip('/')}/{GENERATIONS}")
    about = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": socket.gethostname(), "pid": os.getpid(), **facts}
    while True:
        number, token = max(generations(store), default=0) + 1, secrets.token_hex(8)
        content = json.dumps({"token": token, **about}) + "\n"
        try:
            made = store.create(_name(number), content.encode())
        except OSError as error:
            raise UserError(
                f"nothing can be written to {store.url} ({error.strerror}), so no checkpoint could be either; make "
                f"room there, or choose another --run-dir"
            ) from error
        if made and read_generation(store, number).get("token") == token:
            return Fence(store, number, token)


def generations(store: Store) -> list[int]:
    """The numbers that were taken so far."""
    return sorted(int(name) for name in store.list() if name.isdigit())


def read_generation(store: Store, number: int) -> dict[str, Any]:
    """What a start wrote about itself; empty while it is only just taking the number."""
    try:
        return json.loads(store.read(_name(number)))
    except (MissingObjectError, ValueError):
        return {}


def _name(number: int) -> str:
    return f"{number:07d}"


def _where(by: Mapping[str, Any]) -> str:
    return f" on {by['host']} (pid {by['pid']}) at {by['time']}" if by.get("host") else ""
