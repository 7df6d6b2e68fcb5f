"""Storage for the part files of a feature pass: a shared folder, or a prefix of an object store.

A part appears under its name only when it is complete. Nodes copy parts of an object store to a private folder below
TMPDIR, because probes read rows in random order and objects are read whole. The ranks of a node share the copies, and
the last one that leaves removes them. The name of a copy contains its object's version, so a replaced object is fetched
again.

Legend: see features.py.
"""

import json
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.store.store import Location, open_store
from distributed.marble.datasets.corpus import Slice
from pupujepa.durable import atomic_file, private_folder
from pupujepa.errors import UserError, require_readable
from pupujepa.locks import LockTakenError, held, open_locked

log = logging.getLogger(__name__)

_PREFIX, _SUFFIX = "part-", ".safetensors"
_PATIENCE_S = 60.0


class PartStore:
    """Part files of one key.

    Args:
        cache: path or url of the folder with the features of all keys.
    """

    def __init__(self, cache: Location | Path, key: str):
        self.key = key
        self._store = open_store(f"{str(cache).rstrip('/')}/{key}")
        self._versions: dict[int, str] = {}
        self._known: set[int] = set()

    @property
    def location(self) -> Location:
        """Path or url, for messages."""
        return self._store.locate()

    def describe(self, fields: dict[str, object]) -> None:
        """Writes the fields that the key is a digest of beside the parts."""
        self._store.write("key.json", json.dumps(fields, indent=2).encode())

    def numbers(self) -> set[int]:
        """Returns the numbers of the parts in the store now, and remembers their versions."""
        found = {n: v for n, v in self._store.versions().items() if n.startswith(_PREFIX) and n.endswith(_SUFFIX)}
        self._versions = {int(n.removeprefix(_PREFIX).removesuffix(_SUFFIX)): v for n, v in found.items()}
        return set(self._versions)

    def is_whole(self, number: int, slices: Sequence[Slice]) -> bool:
        """Returns True if an existing part is readable and has these slices.

        Objects are always complete, so they are checked when they are read.

        Raises:
            UserError: it cannot be read now, which is no reason to compute it again.
        """
        path = self._store.local_path(_name(number))
        if path is None:
            return True
        try:
            return _slices_of(path) == tuple(slices)
        except SafetensorError as error:
            log.warning("%s cannot be read (%s), so it is computed again", path, error)
            return False

    def save(self, number: int, tensors: dict[str, Tensor], slices: Sequence[Slice]) -> None:
        """Publishes a complete part."""
        metadata = {"slices": json.dumps([s.name for s in slices])}
        own = self._store.local_path(_name(number))  # None for an object store
        if own is not None:
            with atomic_file(own) as temporary:
                save_file(tensors, temporary, metadata=metadata)
            return
        with tempfile.TemporaryDirectory(prefix="pupujepa-") as folder:
            path = Path(folder) / _name(number)
            save_file(tensors, path, metadata=metadata)
            self._store.upload(path, _name(number))

    def path(self, number: int, slices: Sequence[Slice]) -> Path:
        """Returns a local file with a part.

        Raises:
            UserError: the part has other slices than these, or cannot be read.
        """
        path = self._store.local_path(_name(number)) or self._copy(number)
        if number not in self._known:
            try:
                found = _slices_of(path)
            except SafetensorError as error:
                raise UserError(
                    f"{self._store.locate(_name(number))} cannot be read ({error}) because it was damaged after "
                    "writing; delete it and run again, which computes only this part"
                ) from error
            if found != tuple(slices):
                raise UserError(
                    f"{self._store.locate(_name(number))} has other slices than its number implies, so features would "
                    f"belong to other audio; delete {self.location} and run again"
                )
            self._known.add(number)  # check each part once
        return path

    @cached_property
    def _copies(self) -> Path:
        """The folder of copies, in use until this store is garbage."""
        root = private_folder(Path(tempfile.gettempdir()) / f"pupujepa-features-{os.getuid()}")
        _remove_unused(root)  # of processes that were killed
        folder = root / self.key
        with held(root / ".lock", wait_s=_PATIENCE_S):
            folder.mkdir(exist_ok=True)
            used = open_locked(folder, shared=True)
        weakref.finalize(self, _leave, root, used)
        return folder

    def _copy(self, number: int) -> Path:
        version = blake2b(self._versions[number].encode(), digest_size=8).hexdigest()
        path = self._copies / f"{version}-{_name(number)}"
        if not path.is_file():
            self._store.download(_name(number), path)
        return path


def _leave(root: Path, used: int) -> None:
    os.close(used)
    _remove_unused(root)


def _remove_unused(root: Path) -> None:
    """Removes the copies that no process uses."""
    with suppress(LockTakenError, FileNotFoundError), held(root / ".lock", wait_s=_PATIENCE_S):
        for folder in root.glob("[!.]*"):
            with suppress(BlockingIOError):
                os.close(open_locked(folder, shared=False))  # raises if it is in use; nobody enters meanwhile
                shutil.rmtree(folder)


def _name(number: int) -> str:
    return f"{_PREFIX}{number:05d}{_SUFFIX}"


def _slices_of(path: Path) -> tuple[Slice, ...]:
    require_readable(path)
    with safe_open(path, framework="pt") as file:
        return tuple(Slice(*name) for name in json.loads(file.metadata()["slices"]))
