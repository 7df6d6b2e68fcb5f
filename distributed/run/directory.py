"""The run directory: its paths, the atomic write, and the lock of its one writer."""

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pupujepa import locks
from pupujepa.durable import atomic_file
from pupujepa.errors import UserError


class RunDirectoryError(UserError):
    """A run directory that cannot be used for what was asked."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths below `root`."""

    root: Path

    def __post_init__(self):
        if "://" in str(self.root):
            raise RunDirectoryError(
                f"--run-dir {self.root} is a URL: logs are appended to and locked, which object stores cannot do; give "
                f"a directory that all nodes share, and checkpoint.url={self.root} if checkpoints belong there"
            )

    @property
    def config(self) -> Path:
        """The resolved experiment."""
        return self.root / "config.yaml"

    @property
    def deepspeed(self) -> Path:
        """What DeepSpeed was started with, generated."""
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


def lock_run(run: RunDirectory, *, wait_s: float = 60.0) -> AbstractContextManager[None]:
    """Holds the run directory for this process, as `pupujepa.locks.only_writer` does.

    When a launcher is killed its ranks can live on for a while, hence the wait; a second set of ranks over the same
    checkpoints would mix two runs into one.

    Raises:
        FolderInUseError: another process still writes there after `wait_s`.
    """
    return locks.only_writer(run.root, wait_s=wait_s)


def read_sessions(directory: RunDirectory) -> list[dict[str, Any]]:
    """The sessions of a run so far, oldest first."""
    path: Path = directory.history
    return json.loads(path.read_text()) if path.exists() else []
