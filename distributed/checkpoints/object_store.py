"""Checkpoints in an object store: the manifest is written last and deleted first.

An object store has neither rename nor fsync. Each generation of the run writes below its own prefix,
step-0000100/g3/..., so a superseded process cannot damage the files of a newer start. A prefix without a manifest is
not a checkpoint; the next commit removes it. To load, one rank of each machine downloads a checkpoint and verifies it
on disk.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from data.store.store import MissingObjectError, open_store
from distributed.checkpoints.manifest import (
    MANIFEST_NAME,
    STEP_NAME,
    CheckpointError,
    CheckpointManifest,
    DamagedError,
    file_damage,
    files_below,
    parse_manifest,
    step_name,
)
from distributed.checkpoints.shared_directory import POINTER_NAME
from distributed.processes.topology import Topology

_DATA_OBJECT = re.compile(r"(step-\d{7,})/g(\d+)/.+")
_FETCHED = ".fetched"


class ObjectPrefix:
    """Checkpoints below a url; `staging` is a directory of this machine for uploads and downloads."""

    def __init__(self, url: str, *, staging: Path):
        self.store, self.staging = open_store(url), staging
        self.generation: int | None = None

    def temporary(self, step: int) -> Path:
        """Such as STAGING/step-0000100-g3.tmp."""
        return self.staging / f"{step_name(step)}-g{self._own}.tmp"

    def recover(self) -> None:
        """Does nothing: without its manifest, nothing marks a checkpoint as complete."""

    def prepare(self, step: int) -> None:
        """Does nothing, because training waits and a store may be slow; `commit` cleans."""

    def join(self, step: int) -> None:
        """Makes the temporary directory of this machine, and removes earlier downloads."""
        for path in self.staging.glob(f"step-*{_FETCHED}"):
            shutil.rmtree(path, ignore_errors=True)
        self.temporary(step).mkdir(parents=True, exist_ok=True)

    def deliver(self, step: int, names: Iterable[str]) -> None:
        """Uploads a rank's files; raises StoreError."""
        for name in names:
            self.store.upload(self.temporary(step) / name, self._object(step, name))

    def commit(self, step: int, manifest: str, *, names: Iterable[str]) -> None:
        """Checks that all objects exist, then writes the manifest, then the pointer.

        The manifest makes the checkpoint.
        """
        prefix = f"{step_name(step)}/g{self._own}/"
        missing = {self._object(step, name) for name in names} - set(self.store.list(prefix))
        if missing:
            raise CheckpointError(f"{self.store.locate(sorted(missing)[0])} was uploaded but is not in the store")
        self.store.write(f"{step_name(step)}/{MANIFEST_NAME}", manifest.encode())
        self.store.write(POINTER_NAME, f"{step_name(step)}\n".encode())
        self.clean()

    def discard(self, step: int) -> None:
        """Removes the local copies."""
        shutil.rmtree(self.temporary(step), ignore_errors=True)

    def delete(self, step: int) -> None:
        """Deletes a checkpoint, the manifest first: without it there is no checkpoint."""
        self.store.remove(f"{step_name(step)}/{MANIFEST_NAME}")
        for name in self.store.list(f"{step_name(step)}/"):
            self.store.remove(name)

    def steps(self) -> list[int]:
        """Returns the steps that have a manifest; raises StoreError."""
        return _steps(self.store.list("step-"))

    def damage(self, step: int, topology: Topology) -> str:
        """Downloads and verifies a checkpoint on local rank 0.

        Raises StoreError if the store cannot be reached, and as `parse_manifest`.
        """
        if topology.local_rank:
            return ""
        try:
            content = self.store.read(f"{step_name(step)}/{MANIFEST_NAME}")
            manifest = parse_manifest(content, self.store.locate(step_name(step)))
            return self._fetch(step, manifest, content)
        except (MissingObjectError, DamagedError) as error:
            return str(error)

    def path(self, step: int) -> Path:
        """Returns the folder of the download by `damage`."""
        return self.staging / f"{step_name(step)}{_FETCHED}"

    def latest(self) -> int | None:
        """Returns the step of the pointer, or None."""
        try:
            match = STEP_NAME.fullmatch(self.store.read(POINTER_NAME).decode(errors="replace").strip())
        except MissingObjectError:
            return None
        return int(match[1]) if match else None

    def clean(self) -> None:
        """Removes objects without a manifest, except of newer generations."""
        names = self.store.list("step-")
        whole = {step_name(step) for step in _steps(names)}
        for name in names:
            match = _DATA_OBJECT.fullmatch(name)
            if match and match[1] not in whole and int(match[2]) <= self._own:
                self.store.remove(name)

    @property
    def _own(self) -> int:
        return self.generation or 0

    def _object(self, step: int, name: str) -> str:
        return f"{step_name(step)}/g{self._own}/{name}"

    def _fetch(self, step: int, manifest: CheckpointManifest, content: bytes) -> str:
        target, writer = self.path(step), manifest.facts.get("generation", 0)
        if target.is_dir() and not self._stale(target, content):
            return ""
        shutil.rmtree(target, ignore_errors=True)
        for name, entry in manifest.files.items():
            source = f"{step_name(step)}/g{writer}/{name}"
            self.store.download(source, target / name)
            if damage := file_damage(target / name, entry):
                return f"{self.store.locate(source)}: {damage}"
        (target / MANIFEST_NAME).write_bytes(content)
        return ""

    def _stale(self, target: Path, content: bytes) -> bool:
        there = target / MANIFEST_NAME
        if not there.is_file() or there.read_bytes() != content:
            return True
        files = parse_manifest(content, str(target)).files
        found = {str(p.relative_to(target)) for p in files_below(target)}
        return found != set(files) or any(file_damage(target / name, files[name]) for name in files)


def _steps(names: Iterable[str]) -> list[int]:
    manifests = (name.removesuffix(f"/{MANIFEST_NAME}") for name in names if name.endswith(f"/{MANIFEST_NAME}"))
    return sorted((int(m[1]) for name in manifests if (m := STEP_NAME.fullmatch(name))), reverse=True)
