"""The interface of a place for checkpoints, and checkpoints in a directory that all ranks share.

One rename gives a checkpoint its name after everything is on disk, and one takes it away before its files are deleted.
So a folder with such a name is whole, or was damaged later. For an object store see object_store.py.
"""

import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from distributed.checkpoints.manifest import (
    MANIFEST_NAME,
    STEP_NAME,
    CheckpointError,
    DamagedError,
    file_damage,
    files_below,
    read_checkpoint_manifest,
    step_name,
)
from distributed.processes.topology import Topology
from distributed.run.directory import write_atomically
from pupujepa.durable import sync
from pupujepa.errors import unreadable

POINTER_NAME = "LATEST"
_TEMPORARY, _DELETED = ".tmp", ".deleted"
# with the generation of its writer, so a superseded process cannot write into it
_UNFINISHED = re.compile(r"(step-\d{7,})(?:-g(\d+))?(?:\.tmp|\.deleted)")


class CheckpointPlace(Protocol):
    """The interface that a CheckpointStore needs.

    `recover`, `prepare`, `commit` and `delete` are for rank 0 alone.

    generation: of the start that writes there; see fencing.py.
    """

    generation: int | None

    def temporary(self, step: int) -> Path:
        """Returns the local directory that a checkpoint is written into."""

    def recover(self) -> None:
        """Publishes checkpoints that were complete when their writer was killed."""

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
        """Verifies this rank's share of a checkpoint; returns the damage as a sentence, "" if none.

        Raises:
            UserError: it cannot be judged now.
        """

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

    def recover(self) -> None:
        """Gives checkpoints with a manifest their name: it is written last, so all their files are on disk."""
        for manifest in sorted(self.root.glob(f"step-*{_TEMPORARY}/{MANIFEST_NAME}")):
            if match := _UNFINISHED.fullmatch(manifest.parent.name):
                self._publish(manifest.parent, self.root / match[1])

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
        temporary = self.temporary(step)
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
        self._publish(temporary, self.path(step))

    def discard(self, step: int) -> None:
        """Removes the temporary directory; `clean` removes the rest if this fails."""
        with suppress(OSError):
            _remove(self.temporary(step))

    def delete(self, step: int) -> None:
        """Renames a checkpoint, then deletes it: half a deletion must not look like a damaged checkpoint."""
        shutil.rmtree(_set_aside(self.path(step)))

    def steps(self) -> list[int]:
        """Returns the steps by the names of the folders, newest first."""
        try:
            names = [path.name for path in self.root.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unreadable(self.root, error) from error
        return sorted((int(m[1]) for name in names if (m := STEP_NAME.fullmatch(name))), reverse=True)

    def damage(self, step: int, topology: Topology) -> str:
        """Verifies every world_size-th file."""
        path = self.path(step)
        try:
            files = read_checkpoint_manifest(path).files
        except DamagedError as error:
            return str(error)
        names = sorted(files)[topology.rank :: topology.world_size]
        return next((damage for name in names if (damage := file_damage(path / name, files[name]))), "")

    def path(self, step: int) -> Path:
        """Such as ROOT/step-0000100."""
        return self.root / step_name(step)

    def latest(self) -> int | None:
        """Returns the step of the pointer; None without a valid one."""
        try:
            match = STEP_NAME.fullmatch((self.root / POINTER_NAME).read_text().strip())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self.root / POINTER_NAME, error) from error
        return int(match[1]) if match else None

    def clean(self) -> None:
        """Removes half-written and half-deleted checkpoints, except of newer generations."""
        for path in self.root.glob("step-*"):
            match = _UNFINISHED.fullmatch(path.name)
            if match and (match[2] is None or self.generation is None or int(match[2]) <= self.generation):
                _remove(path)

    def _publish(self, temporary: Path, final: Path) -> None:
        # one of this step was damaged, so the run trained these steps again; `recover` undoes a kill in between
        replaced = _set_aside(final) if final.exists() else None
        temporary.rename(final)
        sync(self.root)
        write_atomically(self.root / POINTER_NAME, final.name + "\n")
        if replaced is not None:
            shutil.rmtree(replaced)


def _remove(folder: Path) -> None:
    """Deletes an unfinished checkpoint, its manifest first: half of it must not look complete."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _set_aside(path: Path) -> Path:
    """Takes the name of a checkpoint away, and returns its new one."""
    aside = path.with_name(path.name + _DELETED)
    shutil.rmtree(aside, ignore_errors=True)  # half-deleted before
    return path.rename(aside)
