"""Durable files: a file gets its name only when it is complete and on disk."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART_SUFFIX = ".part"
_MAX_NAME_BYTES = 200  # file systems allow 255, for the rest of a temporary name too


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; when the block succeeds, that file durably replaces `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # in the same folder, because a rename is atomic within one file system only
    name = os.fsdecode(os.fsencode(path.name)[:_MAX_NAME_BYTES])
    temporary = path.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}{PART_SUFFIX}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)  # otherwise a power failure can undo the rename
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Removes the temporary files of killed writers below a folder that no process writes to."""
    for leftover in folder.rglob(f".*{PART_SUFFIX}"):
        leftover.unlink()


def sync(path: Path) -> None:
    """Flushes a file's content, or the renames inside a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
