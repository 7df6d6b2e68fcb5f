"""The files of a checkpoint: their digests, whose file is whose, and a manifest that vouches for itself."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from pupujepa.errors import UserError

MANIFEST_NAME = "manifest.json"
STEP_NAME = re.compile(r"step-(\d{7,})")
# 1 had no digest of its own
FORMAT_VERSION, _READ_VERSIONS = 2, (1, 2)
_RANK_OF_FILE = re.compile(r"(?:zero_pp_rank_|rank-)(\d+)")


class CheckpointError(UserError):
    """No checkpoint can be used, or one could not be made."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: where its files lie on this machine, and its manifest without the table of files."""

    path: Path
    step: int
    facts: dict[str, Any]
    digest: str

    @property
    def name(self) -> str:
        """Such as step-0000100."""
        return step_name(self.step)


@dataclass(frozen=True)
class CheckpointManifest:
    """What a manifest says: `files` maps each path inside the checkpoint to its {"bytes", "sha256"}."""

    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]
    digest: str

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(entry["bytes"] for entry in self.files.values())


def step_name(step: int) -> str:
    """The name of a checkpoint."""
    return f"step-{step:07d}"


def render_manifest(facts: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """Writes a manifest whose last entry is the digest of everything above it."""
    body = {"format_version": FORMAT_VERSION, **facts, "files": dict(files)}
    return _dumps({**body, "manifest_sha256": sha256(_dumps(body).encode()).hexdigest()})


def parse_manifest(content: bytes, where: str) -> CheckpointManifest:
    """Reads a manifest, strictly: a single bit that is not as it was written makes it unreadable.

    Args:
        where: the checkpoint, for the message.

    Raises:
        CheckpointError: it is damaged, or of a format that this code does not know.
    """
    try:
        manifest = json.loads(content)
        version, files = manifest["format_version"], manifest["files"]
        facts = {key: value for key, value in manifest.items() if key not in ("files", "manifest_sha256")}
        facts["step"] = int(facts["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"checkpoint {where} has no readable {MANIFEST_NAME} ({error})") from error
    if version not in _READ_VERSIONS:
        raise CheckpointError(
            f"checkpoint {where} has format version {version}, this code reads {' and '.join(map(str, _READ_VERSIONS))}"
        )
    told = {key: value for key, value in facts.items() if key != "format_version"}
    if version > 1 and render_manifest(told, files).encode() != content:
        raise CheckpointError(f"checkpoint {where} has a damaged {MANIFEST_NAME}: its own digest does not fit it")
    return CheckpointManifest(facts, files, sha256(content).hexdigest())


def read_checkpoint_manifest(path: Path) -> CheckpointManifest:
    """Reads the manifest of the checkpoint that lies at `path`. Raises CheckpointError."""
    try:
        content = (path / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} has no readable {MANIFEST_NAME} ({error})") from error
    return parse_manifest(content, str(path))


def checkpoint_at(path: Path) -> Checkpoint:
    """Describes the checkpoint at `path` by its manifest; its files are not looked at. Raises CheckpointError."""
    manifest = read_checkpoint_manifest(path)
    return Checkpoint(path, manifest.facts["step"], manifest.facts, manifest.digest)


def files_below(directory: Path) -> Iterator[Path]:
    """All files of a checkpoint but its manifest, sorted."""
    return (p for p in sorted(directory.rglob("*")) if p.is_file() and p.name != MANIFEST_NAME)


def digests_of_rank(directory: Path, *, rank: int, world_size: int) -> dict[str, Any]:
    """Makes the files that a rank wrote durable, and digests them."""
    own = [p for p in files_below(directory) if owner(p, world_size) == rank]
    return {str(p.relative_to(directory)): _sync_and_digest(p) for p in own}


def owner(path: Path, world_size: int) -> int:
    """The rank that writes a file: by DeepSpeed's or our rank in its name, else 0."""
    match = _RANK_OF_FILE.search(path.name)
    rank = int(match[1]) if match else 0
    return rank if rank < world_size else 0


def file_damage(path: Path, entry: Mapping[str, Any]) -> str:
    """Says what is wrong with a file, "" if nothing."""
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


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _sync_and_digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}
