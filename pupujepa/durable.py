"""Files that are named only when complete and on disk; folders of this user alone."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pupujepa.errors import UserError

PART_SUFFIX = ".part"
# the disk, or the user's share of it, is full
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
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


def private_folder(folder: Path) -> Path:
    """Makes a folder of this user alone, for a known name in a folder where all may write, such as /tmp.

    Raises:
        UserError: something of this name exists that others made, or may write to.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()  # of a link itself
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UserError(
            f"{folder} is a link, belongs to another user or is open to others, who could change its files; remove it, "
            "or set TMPDIR"
        )
    folder.chmod(0o700)
    return folder


def sync(path: Path) -> None:
    """Flushes a file's content, or the renames inside a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
