"""The interface of a place for checkpoints, and checkpoints in a directory that all ranks share.

One rename gives a checkpoint its name after everything is on disk, and one takes it away before its files are deleted.
So a folder with such a name is whole, or was damaged later. For an object store see object_store.py.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from distributed.checkpoints.manifest import (
    MANIFEST_NAME,
    STEP_NAME,
    CheckpointError,
    file_damage,
    files_below,
    read_checkpoint_manifest,
    step_name,
)
from distributed.processes.topology import Topology
from distributed.run.directory import write_atomically
from pupujepa.durable import sync

POINTER_NAME = "LATEST"
_TEMPORARY, _DELETED = ".tmp", ".deleted"
# with the generation of its writer, so a superseded process cannot write into it
_UNFINISHED = re.compile(r"step-\d{7,}(?:-g(\d+))?(?:\.tmp|\.deleted)")


class CheckpointPlace(Protocol):
    """The interface that a CheckpointStore needs; `prepare`, `commit` and `delete` are for rank 0 alone.

    generation: of the start that writes there; see fencing.py.
    """

    generation: int | None

    def temporary(self, step: int) -> Path:
        """Returns the local directory that a checkpoint is written into."""

    def prepare(self, step: int) -> None:
        """Removes unfinished checkpoints."""

    def join(self, step: int) -> None:
        """Checks or makes the temporary directory of this rank, after `prepare`; on every rank."""

    def deliver(self, step: int, names: Iterable[str]) -> None:
        """Moves the finished files of a rank to the place."""

    def commit(self, step: int, manifest: str, *, names: Iterable[str]) -> None:
        """Publishes the checkpoint."""

    def discard(self, step: int) -> None:
        """Removes this machine's temporary directory."""

    def delete(self, step: int) -> None:
        """Removes a checkpoint."""

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, whole or not, newest first."""

    def damage(self, step: int, topology: Topology) -> str:
        """Verifies this rank's share of a checkpoint; returns the damage as a sentence, "" if none."""

    def path(self, step: int) -> Path:
        """Returns the local folder of a checkpoint that `damage` found whole."""

    def latest(self) -> int | None:
        """Returns the step of the pointer, or None."""


class SharedDirectory:
    """Checkpoints in a directory."""

    def __init__(self, root: Path):
        self.root = root
        self.generation: int | None = None

    def temporary(self, step: int) -> Path:
        """Such as step-0000100-g3.tmp."""
        return self.root / f"{step_name(step)}{'' if self.generation is None else f'-g{self.generation}'}{_TEMPORARY}"

    def prepare(self, step: int) -> None:
        """Makes the temporary directory, and removes those of generations up to this one."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.clean()
        self.temporary(step).mkdir()

    def join(self, step: int) -> None:
        """Raises CheckpointError if this rank does not see the directory of rank 0."""
        if not self.temporary(step).is_dir():
            raise CheckpointError(
                f"a rank does not see {self.temporary(step)}, which rank 0 made: the nodes do not share the run "
                f"directory; put it on a file system that all nodes mount, or set checkpoint.url"
            )

    def deliver(self, step: int, names: Iterable[str]) -> None:
        """Does nothing: the files are already there."""

    def commit(self, step: int, manifest: str, *, names: Iterable[str]) -> None:
        """Writes the manifest, then renames; raises CheckpointError, OSError."""
        temporary, final = self.temporary(step), self.path(step)
        found = {str(p.relative_to(temporary)) for p in files_below(temporary)}
        lost = sorted(found ^ set(names))
        if lost:
            raise CheckpointError(
                f"rank 0 and the others disagree about {', '.join(lost[:3])} in {temporary}: the run directory is not "
                f"the same on all nodes; put it on a file system that all nodes mount, or set checkpoint.url"
            )
        write_atomically(temporary / MANIFEST_NAME, manifest)
        for directory in {p.parent for p in files_below(temporary)}:
            sync(directory)
        if final.exists():
            # damaged, so the resumed run trained these steps again
            self.delete(step)
        temporary.rename(final)
        sync(self.root)
        write_atomically(self.root / POINTER_NAME, final.name + "\n")

    def discard(self, step: int) -> None:
        """Removes the temporary directory; `clean` removes the rest if this fails."""
        shutil.rmtree(self.temporary(step), ignore_errors=True)

    def delete(self, step: int) -> None:
        """Renames a checkpoint, then deletes it: half a deletion must not look like a damaged checkpoint."""
        path = self.path(step)
        doomed = path.with_name(path.name + _DELETED)
        path.rename(doomed)
        shutil.rmtree(doomed)

    def steps(self) -> list[int]:
        """Returns the steps by the names of the folders, newest first."""
        if not self.root.is_dir():
            return []
        return sorted((int(m[1]) for p in self.root.iterdir() if (m := STEP_NAME.fullmatch(p.name))), reverse=True)

    def damage(self, step: int, topology: Topology) -> str:
        """Verifies every world_size-th file."""
        path = self.path(step)
        try:
            files = read_checkpoint_manifest(path).files
        except CheckpointError as error:
            return str(error)
        names = sorted(files)[topology.rank :: topology.world_size]
        return next((damage for name in names if (damage := file_damage(path / name, files[name]))), "")

    def path(self, step: int) -> Path:
        """Such as ROOT/step-0000100."""
        return self.root / step_name(step)

    def latest(self) -> int | None:
        """Returns the step of the pointer; None without a valid one."""
        pointer = self.root / POINTER_NAME
        match = STEP_NAME.fullmatch(pointer.read_text().strip()) if pointer.is_file() else None
        return int(match[1]) if match else None

    def clean(self) -> None:
        """Removes half-written and half-deleted checkpoints, except of newer generations."""
        for path in self.root.glob("step-*"):
            match = _UNFINISHED.fullmatch(path.name)
            if match and (match[1] is None or self.generation is None or int(match[1]) <= self.generation):
                shutil.rmtree(path)
