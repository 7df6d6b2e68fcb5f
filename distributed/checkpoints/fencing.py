"""Fencing: every start of a run takes the next generation, and a superseded process must not write.

The lock of the run directory (run/directory.lock_run) separates two running starts, but is lost with its node. If the
run starts again elsewhere and the node returns, the old rank 0 still trains. So before it publishes a checkpoint or
appends a row, rank 0 checks that its generation is the newest.

A generation is a file, RUN/generations/0000003, created with O_EXCL, and an object beside checkpoints in an object
store, created only if it does not exist. Some stores ignore that condition and let two starts take one number. Then
the later token stays, and the earlier start stops at its next check.

Each check asks for two names, whatever the number of starts: its own, and the next one. The newest hundred are kept.
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
KEPT_GENERATIONS = 100


@dataclass(frozen=True)
class Fence:
    """The generation of this start of a run, in `store`.

    beside: its generation in the run directory, if the checkpoints are elsewhere.
    """

    store: Store
    generation: int
    token: str
    beside: "Fence | None" = None

    @property
    def near(self) -> "Fence":
        """The fence on a file system, which answers at once."""
        return self.beside or self

    def require_current(self) -> None:
        """Raises SupersededError if a newer start of the run exists.

        Raises:
            StoreError: the store cannot be reached.
        """
        if self.beside is not None:
            self.beside.require_current()
        # in this order: old generations are deleted oldest first, so with the next one gone, the own one is gone too
        newer = self.store.exists(_name(self.generation + 1))
        if newer or read_generation(self.store, self.generation).get("token") != self.token:
            newest = max(generations(self.store), default=0)
            by = read_generation(self.store, newest)
            raise SupersededError(
                f"generation {self.generation} of the run at {self.store.url} is over: generation {newest} was started"
                f"{_where(by)}, so this process (pid {os.getpid()} on {socket.gethostname()}) must not write; end "
                f"it if it does not end by itself"
            )


class FencedSink:
    """The first sink of a run, which stops a superseded process before it appends a row to metrics.jsonl."""

    def __init__(self, fence: Fence):
        # a request to an object store for every row would be too slow
        self._fence = fence.near

    def write(self, row: Mapping[str, Any]) -> None:
        """Raises SupersededError if the run was started again."""
        self._fence.require_current()

    def close(self, outcome: str = FINISHED) -> None:
        """Holds nothing."""


def take_generation(root: Path | str, *, facts: Mapping[str, Any]) -> Fence:
    """Takes the next generation of a run for this start; for rank 0 alone.

    Args:
        root: the run directory, or the url of its checkpoints.
        facts: written with the generation, to describe this start.

    Raises:
        UserError: nothing can be written there.
    """
    store = open_store(f"{str(root).rstrip('/')}/{GENERATIONS}")
    about = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": socket.gethostname(), "pid": os.getpid(), **facts}
    while True:
        taken, token = generations(store), secrets.token_hex(8)
        number = max(taken, default=0) + 1
        content = json.dumps({"token": token, **about}) + "\n"
        try:
            made = store.create(_name(number), content.encode())
        except OSError as error:
            raise UserError(
                f"nothing can be written to {store.url} ({error.strerror}), so checkpoints would fail; free space "
                f"there, or choose another --run-dir"
            ) from error
        # check the token: a store that ignores the condition lets another start overwrite it
        if made and read_generation(store, number).get("token") == token:
            for old in taken[: 1 - KEPT_GENERATIONS]:
                store.remove(_name(old))
            return Fence(store, number, token)


def generations(store: Store) -> list[int]:
    """Returns the newest generations taken so far, in order."""
    return sorted(int(name) for name in store.list() if name.isdigit())


def read_generation(store: Store, number: int) -> dict[str, Any]:
    """Reads the record of a start; empty while that start is still writing it.

    Raises:
        StoreError: the store cannot be reached, which says nothing about newer starts.
    """
    try:
        return json.loads(store.read(_name(number)))
    except (MissingObjectError, json.JSONDecodeError, UnicodeDecodeError):
        return {}


def _name(number: int) -> str:
    return f"{number:07d}"


def _where(by: Mapping[str, Any]) -> str:
    return f" on {by['host']} (pid {by['pid']}) at {by['time']}" if by.get("host") else ""
