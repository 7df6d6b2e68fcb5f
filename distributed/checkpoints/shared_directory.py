"""Where checkpoints lie: a directory that all ranks share. (A prefix of an object store:
distributed/checkpoints/object_store.py.)

A checkpoint gets its name by one rename, when its manifest is written and everything is on disk; it loses it by one
rename before its files are deleted. So whatever has the name is whole, or was damaged later.
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
# the generation that writes it, so that a leftover of an older one cannot write into it
_UNFINISHED = re.compile(r"step-\d{7,}(?:-g(\d+))?(?:\.tmp|\.deleted)")


class CheckpointPlace(Protocol):
    """What a CheckpointStore needs of a place; `prepare`, `commit` and `delete` are for rank 0 alone.

    generation: of the start of the run that writes there; see fencing.py.
    """

    generation: int | None

    def temporary(self, step: int) -> Path:
        """The local directory that a checkpoint is written into."""

    def prepare(self, step: int) -> None:
        """Removes what is unfinished."""

    def join(self, step: int) -> None:
        """Makes sure that this rank has the temporary directory; every rank, after `prepare`."""

    def deliver(self, step: int, names: Iterable[str]) -> None:
        """Brings a rank's finished files to where they will be read from."""

    def commit(self, step: int, manifest: str, *, names: Iterable[str]) -> None:
        """Makes the checkpoint of the files in the manifest; before it returns there is none, or an older one."""

    def discard(self, step: int) -> None:
        """Removes this machine's temporary directory."""

    def delete(self, step: int) -> None:
        """Removes a checkpoint."""

    def steps(self) -> list[int]:
        """The steps of all checkpoints, whole or not, newest first."""

    def damage(self, step: int, topology: Topology) -> str:
        """Looks at this rank's share of a checkpoint, and says what is wrong with it; "" if nothing."""

    def path(self, step: int) -> Path:
        """Where the files of a checkpoint lie that was found whole."""

    def latest(self) -> int | None:
        """The step that the pointer names."""


class SharedDirectory:
    """Checkpoints in a directory."""

    def __init__(self, root: Path):
        self.root = root
        self.generation: int | None = None

    def temporary(self, step: int) -> Path:
        """Such as step-0000100-g3.tmp."""
        return self.root / f"{step_name(step)}{'' if self.generation is None else f'-g{self.generation}'}{_TEMPORARY}"

    def prepare(self, step: int) -> None:
        """Makes the temporary directory; those of other generations, up to this one, are removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.clean()
        self.temporary(step).mkdir()

    def join(self, step: int) -> None:
        """Raises CheckpointError where the directory that rank 0 made is not seen."""
        if not self.temporary(step).is_dir():
            raise CheckpointError(
                f"a rank does not see {self.temporary(step)}, which rank 0 made: the run directory is not shared "
                f"between the nodes, so no checkpoint can be made; put it on a file system that all nodes mount, or "
                f"give checkpoint.url"
            )

    def deliver(self, step: int, names: Iterable[str]) -> None:
        """The files are there already."""

    def commit(self, step: int, manifest: str, *, names: Iterable[str]) -> None:
        """Writes the manifest, then renames. Raises CheckpointError, OSError."""
        temporary, final = self.temporary(step), self.path(step)
        found = {str(p.relative_to(temporary)) for p in files_below(temporary)}
        lost = sorted(found ^ set(names))
        if lost:
            raise CheckpointError(
                f"rank 0 and the others disagree about {', '.join(lost[:3])} in {temporary}: the run directory is not "
                f"the same on all nodes; put it on a file system that all nodes mount, or give checkpoint.url"
            )
        write_atomically(temporary / MANIFEST_NAME, manifest)
        for directory in {p.parent for p in files_below(temporary)}:
            sync(directory)
        if final.exists():
            # a damaged one that a resumed run has reached again
            self.delete(step)
        temporary.rename(final)
        sync(self.root)
        write_atomically(self.root / POINTER_NAME, final.name + "\n")

    def discard(self, step: int) -> None:
        """Removes the temporary directory, as far as the disk lets us: it is cleaned again later."""
        shutil.rmtree(self.temporary(step), ignore_errors=True)

    def delete(self, step: int) -> None:
        """Renames it first: half a deletion must not look like a damaged checkpoint."""
        path = self.path(step)
        doomed = path.with_name(path.name + _DELETED)
        path.rename(doomed)
        shutil.rmtree(doomed)

    def steps(self) -> list[int]:
        """Looks at the names alone."""
        if not self.root.is_dir():
            return []
        return sorted((int(m[1]) for p in self.root.iterdir() if (m := STEP_NAME.fullmatch(p.name))), reverse=True)

    def damage(self, step: int, topology: Topology) -> str:
        """Every rank digests a part of the files."""
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
        """None without a pointer, and for one that names nothing that could be a checkpoint."""
        pointer = self.root / POINTER_NAME
        match = STEP_NAME.fullmatch(pointer.read_text().strip()) if pointer.is_file() else None
        return int(match[1]) if match else None

    def clean(self) -> None:
        """Removes what a kill left half written or half deleted, but nothing of a newer generation."""
        for path in self.root.glob("step-*"):
            match = _UNFINISHED.fullmatch(path.name)
            if match and (match[1] is None or self.generation is None or int(match[1]) <= self.generation):
                shutil.rmtree(path)
