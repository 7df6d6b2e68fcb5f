"""The run directory: its paths, atomic writes, and the lock of its only writer."""

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pupujepa import locks
from pupujepa.durable import atomic_file
from pupujepa.errors import UserError

WRITER_WAIT_S = 60.0

logger = logging.getLogger(__name__)


class RunDirectoryError(UserError):
    """The run directory cannot be used for this command."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths below `root`."""

    root: Path

    def __post_init__(self):
        if "://" in str(self.root):
            raise RunDirectoryError(
                f"--run-dir {self.root} is a URL, but object stores cannot append or lock; give a directory that "
                f"all nodes share, and checkpoint.url={self.root} for checkpoints"
            )

    @property
    def config(self) -> Path:
        """The resolved experiment."""
        return self.root / "config.yaml"

    @property
    def deepspeed(self) -> Path:
        """DeepSpeed's generated configuration."""
        return self.root / "deepspeed.json"

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
        """Facts and results of a finished run."""
        return self.root / "facts.json"

    @property
    def history(self) -> Path:
        """A JSON list of the sessions of the run, a record each."""
        return self.root / "history.json"


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` atomically: a reader, or a restart after a kill, sees the old file or the new one."""
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def lock_run(run: RunDirectory, *, check: Callable[[], object] = lambda: None) -> AbstractContextManager[None]:
    """Locks the run directory for this process; waits if it is locked.

    The ranks of a killed launcher end a little later.

    Args:
        check: as for `only_writer`.

    Raises:
        FolderInUseError: another process still writes there after WRITER_WAIT_S.
    """
    return locks.only_writer(run.root, wait_s=WRITER_WAIT_S, check=check)


def read_sessions(directory: RunDirectory) -> list[dict[str, Any]]:
    """Reads the records of a run's sessions, oldest first; none, with a warning, if the file is damaged."""
    path: Path = directory.history
    try:
        sessions = json.loads(path.read_bytes()) if path.exists() else []
        records = sessions if isinstance(sessions, list) else [None]
        if not all(isinstance(record, dict) and {"step", "time"} <= record.keys() for record in records):
            raise ValueError("it holds no list of sessions")
        return sessions
    except (ValueError, RecursionError) as error:
        logger.warning("%s is damaged (%s): the records of earlier sessions cannot be read", path, error)
        return []
