"""The run directory: its paths, the atomic write, and the lock of its one writer."""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pupujepa.durable import atomic_file
from pupujepa.errors import UserError

logger = logging.getLogger(__name__)


class RunDirectoryError(UserError):
    """A run directory that cannot be used for what was asked."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths below `root`."""

    root: Path

    def __post_init__(self):
        if "://" in str(self.root):
            raise RunDirectoryError(
                f"--run-dir {self.root} is a URL: checkpoints are written with rename and fsync, which object stores "
                f"lack; give a directory that all nodes share"
            )

    @property
    def config(self) -> Path:
        """The resolved experiment."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of step-XXXXXXX folders and LATEST."""
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        """Weights in the released format."""
        return self.root / "export"

    @property
    def facts(self) -> Path:
        """What a finished run was and did."""
        return self.root / "facts.json"

    @property
    def history(self) -> Path:
        """When the run was started and continued: a JSON list of {step, time, world_size, checkpoint}."""
        return self.root / "history.json"


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that a reader, or a restart after a kill, sees the old file or the new one, never half of it."""
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def only_writer(run: RunDirectory, *, wait_s: float = 60.0) -> Iterator[None]:
    """Holds the run's lock; the kernel releases it however the holder ends.

    When a launcher is killed its ranks can live on for a while; a second set of ranks over the same checkpoints would
    mix two runs into one.

    Raises:
        RunDirectoryError: another process still holds the lock after `wait_s`.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    with (run.root / "writer.lock").open("a+") as lock:
        _acquire(lock, run, wait_s)
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def _acquire(lock: Any, run: RunDirectory, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read() or "another process"
            if time.monotonic() > deadline:
                raise RunDirectoryError(
                    f"{run.root} is being written by {holder}; two trainers in one run directory would mix their "
                    f"checkpoints: end that one, or choose another --run-dir"
                ) from error
            if not told:
                logger.warning("waiting up to %.0f s for %s to leave %s", wait_s, holder, run.root)
                told = True
            time.sleep(0.2)
        except OSError as error:
            # some network file systems have no locks at all
            logger.warning("%s cannot be locked (%s): make sure that only one job writes there", run.root, error)
            return
