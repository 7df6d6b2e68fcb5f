"""The manifest of a checkpoint: the digest and the rank of each file, and its own digest."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from pupujepa.errors import UserError, unreadable
from pupujepa.names import require_plain_path

MANIFEST_NAME = "manifest.json"
STEP_NAME = re.compile(r"step-(\d{7,})")
# version 1 has no digest of the manifest itself
FORMAT_VERSION, _READ_VERSIONS = 2, (1, 2)
# the only failures to read that are damage: the file is gone
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_RANK_OF_FILE = re.compile(r"(?:zero_pp_rank_|rank-)(\d+)")


class CheckpointError(UserError):
    """A checkpoint cannot be used or made."""


class DamagedError(CheckpointError):
    """A checkpoint is not as it was written; only this error lets an older one take its place."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on this machine, and its manifest without the table of files."""

    path: Path
    step: int
    facts: dict[str, Any]
    digest: str

    @property
    def name(self) -> str:
        """Its folder's name, such as step-0000100."""
        return step_name(self.step)


@dataclass(frozen=True)
class CheckpointManifest:
    """A parsed manifest; `files` maps each path inside the checkpoint to its {"bytes", "sha256"}."""

    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]
    digest: str

    @property
    def size_bytes(self) -> int:
        """Total size of the files."""
        return sum(entry["bytes"] for entry in self.files.values())


def step_name(step: int) -> str:
    """Returns the folder name of a checkpoint, such as step-0000100."""
    return f"step-{step:07d}"


def render_manifest(facts: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """Returns the text of a manifest; its last entry is the digest of everything above."""
    body = {"format_version": FORMAT_VERSION, **facts, "files": dict(files)}
    return _dumps({**body, "manifest_sha256": sha256(_dumps(body).encode()).hexdigest()})


def parse_manifest(content: bytes, where: str) -> CheckpointManifest:
    """Parses a manifest of the checkpoint `where`.

    Raises:
        DamagedError: a bit of it has changed.
        CheckpointError: a newer program wrote it. UserError: it names a file outside the checkpoint.
    """
    try:
        manifest = json.loads(content)
        version, files = manifest["format_version"], manifest["files"]
        facts = {key: value for key, value in manifest.items() if key not in ("files", "manifest_sha256")}
        facts["step"] = int(facts["step"])
        names = list(files.keys())
        if any(type(files[name]["bytes"]) is not int or not isinstance(files[name]["sha256"], str) for name in names):
            raise ValueError("a file without size and digest")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedError(f"checkpoint {where} has no readable {MANIFEST_NAME} ({error})") from error
    told = {key: value for key, value in facts.items() if key != "format_version"}
    as_written = render_manifest(told, files)
    if version not in _READ_VERSIONS:
        # a flipped bit of the version leaves the digest of the version that was written
        if not _is_newer(version) or json.loads(as_written)["manifest_sha256"] == manifest.get("manifest_sha256"):
            raise DamagedError(f"checkpoint {where} has a damaged {MANIFEST_NAME}: format version {version!r}")
        raise CheckpointError(
            f"checkpoint {where} has format version {version}, and this program reads up to {FORMAT_VERSION}, so it "
            f"was not judged; update the program to continue"
        )
    # rendering it again detects any changed bit, also in white space
    if version > 1 and as_written.encode() != content:
        raise DamagedError(f"checkpoint {where} has a damaged {MANIFEST_NAME}: its own digest does not match")
    for name in names:
        require_plain_path(name, origin=f"{MANIFEST_NAME} of checkpoint {where}")
    return CheckpointManifest(facts, files, sha256(content).hexdigest())


def read_checkpoint_manifest(path: Path) -> CheckpointManifest:
    """Reads the manifest of the checkpoint at `path`.

    Raises:
        UserError: as `parse_manifest`, or it cannot be read now.
    """
    try:
        content = (path / MANIFEST_NAME).read_bytes()
    except _MISSING as error:
        raise DamagedError(f"checkpoint {path} has no readable {MANIFEST_NAME} ({error})") from error
    except OSError as error:
        raise unreadable(path / MANIFEST_NAME, error) from error
    return parse_manifest(content, str(path))


def checkpoint_at(path: Path) -> Checkpoint:
    """Returns the checkpoint at `path` without verifying its files; raises as `read_checkpoint_manifest`."""
    manifest = read_checkpoint_manifest(path)
    return Checkpoint(path, manifest.facts["step"], manifest.facts, manifest.digest)


def files_below(directory: Path) -> Iterator[Path]:
    """Returns all files of a checkpoint except its manifest, sorted."""
    return (p for p in sorted(directory.rglob("*")) if p.is_file() and p.name != MANIFEST_NAME)


def digests_of_rank(directory: Path, *, rank: int, world_size: int) -> dict[str, Any]:
    """Flushes and digests the files that a rank wrote."""
    own = [p for p in files_below(directory) if owner(p, world_size) == rank]
    return {str(p.relative_to(directory)): _sync_and_digest(p) for p in own}


def owner(path: Path, world_size: int) -> int:
    """Returns the rank that writes a file: DeepSpeed's or our rank in its name, else 0."""
    match = _RANK_OF_FILE.search(path.name)
    rank = int(match[1]) if match else 0
    return rank if rank < world_size else 0


def file_damage(path: Path, entry: Mapping[str, Any]) -> str:
    """Returns the damage of a file as a sentence, "" if it is intact.

    Raises:
        UserError: it cannot be read now, which says nothing about its content.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry["bytes"]:
                return f"{path} has {size} bytes instead of {entry['bytes']}"
            if file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"{path} is damaged: its sha256 is not the one that was written"
    except _MISSING as error:
        return f"{path} cannot be read ({error.strerror})"
    except OSError as error:
        raise unreadable(path, error) from error
    return ""


def _is_newer(version: Any) -> bool:
    return isinstance(version, int) and version > FORMAT_VERSION


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _sync_and_digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}
