"""Checkpoints in two phases: every rank's files, on disk and digested, then one rename; and loading by the digests.

DeepSpeed alone names a checkpoint `latest` before the other ranks' files exist, and loads a file with a flipped bit
without complaint. Here a checkpoint is written under a temporary name, its manifest of digests when all ranks have
reported theirs, and only then it gets its name. A kill at any moment leaves the previous one whole. On load all ranks
verify before any of them touches the model, and agree.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch.distributed as dist

from distributed.run_directory import write_atomically, write_json
from distributed.topology import Topology
from pupujepa.durable import sync
from pupujepa.errors import UserError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
POINTER_NAME = "LATEST"
_TEMPORARY, _DELETED = ".tmp", ".deleted"
_STEP_NAME = re.compile(r"step-(\d{7,})")
_RANK_OF_FILE = re.compile(r"(?:zero_pp_rank_|rank-)(\d+)")

logger = logging.getLogger(__name__)


class CheckpointError(UserError):
    """No checkpoint can be used, or one could not be made."""


@dataclass(frozen=True)
class CheckpointConfig:
    """every: steps between checkpoints. keep: how many of the newest stay on disk."""

    every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise UserError(f"checkpoint.every={self.every} and checkpoint.keep={self.keep} must be at least 1")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: where it lies, and its manifest without the table of files."""

    path: Path
    step: int
    facts: dict[str, Any]
    digest: str

    @property
    def name(self) -> str:
        """Such as step-0000100; also DeepSpeed's tag."""
        return self.path.name


class CheckpointStore:
    """The checkpoints of one run, in a directory that all ranks share.

    All methods but `steps` are collective: every rank calls them together.
    """

    def __init__(self, root: Path, topology: Topology, *, keep: int):
        self.root, self.topology, self.keep = root, topology, keep

    def save(self, step: int, write: Callable[[Path], None], facts: dict[str, Any]) -> Checkpoint:
        """Makes the checkpoint of `step` (the number of finished steps).

        Args:
            write: called on every rank with the temporary directory; writes this rank's files there. File names that
                hold `rank-<r>` or DeepSpeed's `zero_pp_rank_<r>` belong to that rank, all others to rank 0.
            facts: goes into the manifest.

        Raises:
            CheckpointError: a rank's files are not visible to rank 0, so the directory is not shared.
        """
        name = f"step-{step:07d}"
        temporary = self.root / (name + _TEMPORARY)
        if self.topology.is_first:
            self.clean()
            temporary.mkdir(parents=True)
        dist.barrier()
        if not temporary.is_dir():
            raise CheckpointError(
                f"rank {self.topology.rank} does not see {temporary}, which rank 0 made: the run directory is not "
                f"shared between the nodes, so no checkpoint can be made; put it on a file system that all nodes mount"
            )
        write(temporary)
        # every file exists before any rank looks for its own
        dist.barrier()
        files = self._gather(self._digest_own(temporary))
        if self.topology.is_first:
            self._commit(temporary, {"format_version": FORMAT_VERSION, "step": step, **facts, "files": files})
        dist.barrier()
        return _read_manifest(self.root / name)[0]

    def newest_whole(self) -> Checkpoint | None:
        """Finds the newest checkpoint whose every byte is what was written; damaged ones are named in a warning.

        Returns:
            None if there is no checkpoint at all.

        Raises:
            CheckpointError: there are checkpoints, but none of them is whole.
        """
        damage = ""
        for step in self._agree(self.steps()):
            path = self.root / f"step-{step:07d}"
            damage = self._damage(path)
            if not damage:
                return _read_manifest(path)[0]
            if self.topology.is_first:
                logger.warning("%s; falling back to the checkpoint before it", damage)
        if damage:
            raise CheckpointError(
                f"none of the checkpoints in {self.root} is whole (the oldest: {damage}), and training does not start "
                f"from zero over a run that exists; restore one from a copy, or start again with another --run-dir"
            )
        return None

    def steps(self) -> list[int]:
        """The steps of all checkpoints that got their name, whole or not, newest first."""
        if not self.root.is_dir():
            return []
        return sorted((int(m[1]) for p in self.root.iterdir() if (m := _STEP_NAME.fullmatch(p.name))), reverse=True)

    def clean(self) -> None:
        """Removes what a kill left half written or half deleted. Rank 0 alone, as the run's only writer."""
        for path in self.root.glob("step-*"):
            if path.suffix in (_TEMPORARY, _DELETED):
                shutil.rmtree(path)

    def _commit(self, temporary: Path, manifest: dict[str, Any]) -> None:
        found = {str(p.relative_to(temporary)) for p in _files(temporary)}
        lost = sorted(found ^ set(manifest["files"]))
        if lost:
            raise CheckpointError(
                f"rank 0 and the others disagree about {', '.join(lost[:3])} in {temporary}: the run directory is not "
                f"the same on all nodes; put it on a file system that all nodes mount"
            )
        write_json(temporary / MANIFEST_NAME, manifest)
        for directory in {p.parent for p in _files(temporary)}:
            sync(directory)
        final = temporary.with_suffix("")
        if final.exists():
            # a damaged one that a resumed run has reached again
            self._delete(final)
        temporary.rename(final)
        sync(self.root)
        write_atomically(self.root / POINTER_NAME, final.name + "\n")
        for step in self.steps()[self.keep :]:
            self._delete(self.root / f"step-{step:07d}")

    def _delete(self, path: Path) -> None:
        # under another name first: half a deletion must not look like a damaged checkpoint
        doomed = path.with_name(path.name + _DELETED)
        path.rename(doomed)
        shutil.rmtree(doomed)

    def _digest_own(self, directory: Path) -> dict[str, Any]:
        own = [p for p in _files(directory) if _owner(p, self.topology.world_size) == self.topology.rank]
        return {str(p.relative_to(directory)): _sync_and_digest(p) for p in own}

    def _gather(self, own: dict[str, Any]) -> dict[str, Any]:
        of_ranks: list[dict[str, Any]] = [{} for _ in range(self.topology.world_size)]
        dist.all_gather_object(of_ranks, own)
        return {name: entry for files in of_ranks for name, entry in sorted(files.items())}

    def _agree(self, steps: list[int]) -> list[int]:
        shared = [steps]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def _damage(self, path: Path) -> str:
        """Returns what is wrong with a checkpoint, "" if nothing; each rank verifies a part of the files."""
        verdicts = [""] * self.topology.world_size
        dist.all_gather_object(verdicts, self._own_verdict(path))
        return next((v for v in verdicts if v), "")

    def _own_verdict(self, path: Path) -> str:
        try:
            _, files = _read_manifest(path)
        except CheckpointError as error:
            return str(error)
        names = sorted(files)[self.topology.rank :: self.topology.world_size]
        return next((damage for name in names if (damage := _file_damage(path / name, files[name]))), "")


def committed(root: Path, *, step: int | None = None) -> Checkpoint:
    """A checkpoint for readers that are not the run itself: that of `step`, or the one LATEST names; verified.

    Raises:
        CheckpointError: it does not exist, or it is damaged.
    """
    pointer = root / POINTER_NAME
    if step is None and not pointer.is_file():
        raise CheckpointError(
            f"{root} has no {POINTER_NAME}: the run has not finished a checkpoint yet; wait, or train"
        )
    path = root / (pointer.read_text().strip() if step is None else f"step-{step:07d}")
    if not path.is_dir():
        there = sorted(p.name for p in root.glob("step-*") if _STEP_NAME.fullmatch(p.name))
        raise CheckpointError(f"there is no checkpoint {path}; there are: {', '.join(there) or 'none'}")
    checkpoint, files = _read_manifest(path)
    for name, entry in files.items():
        if damage := _file_damage(path / name, entry):
            raise CheckpointError(f"{damage}; continue the run, which falls back to an older one, or restore a copy")
    return checkpoint


def _read_manifest(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    file = path / MANIFEST_NAME
    try:
        text = file.read_bytes()
        manifest = json.loads(text)
        version, files, step = manifest["format_version"], manifest.pop("files"), manifest["step"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"checkpoint {path} has no readable {MANIFEST_NAME} ({error})") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"checkpoint {path} has format version {version}, this code reads {FORMAT_VERSION}")
    return Checkpoint(path, step, manifest, sha256(text).hexdigest()), files


def _files(directory: Path) -> Iterator[Path]:
    return (p for p in sorted(directory.rglob("*")) if p.is_file() and p.name != MANIFEST_NAME)


def _owner(path: Path, world_size: int) -> int:
    match = _RANK_OF_FILE.search(path.name)
    rank = int(match[1]) if match else 0
    return rank if rank < world_size else 0


def _sync_and_digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


def _file_damage(path: Path, entry: dict[str, Any]) -> str:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry["bytes"]:
                return f"{path} has {size} bytes instead of {entry['bytes']}"
            if file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"{path} is damaged: its sha256 is not the one that was written"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return ""
