"""Where the part files of one feature pass lie: a folder that all ranks share, or a prefix of an object store.

A part appears under its name when it is whole, never before, in both. Of an object store every node keeps copies on its
own disk (below TMPDIR, shared by its ranks, free to be deleted): probes read rows in random order, and stores are read
whole. A copy carries the version of its object in its name, so an object that was replaced is fetched again.

Legend: see features.py.
"""

import json
import logging
import tempfile
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.store.store import Location, open_store
from distributed.marble.datasets.corpus import Slice
from pupujepa.durable import atomic_file
from pupujepa.errors import UserError

log = logging.getLogger(__name__)

_PREFIX, _SUFFIX = "part-", ".safetensors"


class PartStore:
    """The parts of one key.

    Args:
        cache: path or url of the folder that holds the features of all keys.
    """

    def __init__(self, cache: Location | Path, key: str):
        self.key = key
        self._store = open_store(f"{str(cache).rstrip('/')}/{key}")
        self._copies = Path(tempfile.gettempdir()) / "pupujepa-features" / key
        self._versions: dict[int, str] = {}
        self._known: set[int] = set()

    @property
    def location(self) -> Location:
        """Where it is, for people."""
        return self._store.locate()

    def describe(self, fields: dict[str, object]) -> None:
        """Writes what the key was made of beside the parts."""
        self._store.write("key.json", json.dumps(fields, indent=2).encode())

    def numbers(self) -> set[int]:
        """Returns the numbers of the parts that are there now."""
        found = {n: v for n, v in self._store.versions().items() if n.startswith(_PREFIX) and n.endswith(_SUFFIX)}
        self._versions = {int(n.removeprefix(_PREFIX).removesuffix(_SUFFIX)): v for n, v in found.items()}
        return set(self._versions)

    def is_whole(self, number: int, slices: Sequence[Slice]) -> bool:
        """Whether a part that is there holds these slices; one that cannot be read does not.

        An object is there as a whole or not at all, and is looked at when it is read.
        """
        path = self._store.local_path(_name(number))
        if path is None:
            return True
        try:
            return _slices_of(path) == tuple(slices)
        except SafetensorError as error:
            log.warning("%s cannot be read (%s); its slices are computed again", path, error)
            return False

    def save(self, number: int, tensors: dict[str, Tensor], slices: Sequence[Slice]) -> None:
        """Publishes a part."""
        metadata = {"slices": json.dumps([s.name for s in slices])}
        own = self._store.local_path(_name(number))
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
            UserError: the part holds other slices than these, or cannot be read.
        """
        path = self._store.local_path(_name(number)) or self._copy(number)
        if number not in self._known:
            try:
                found = _slices_of(path)
            except SafetensorError as error:
                raise UserError(
                    f"{self._store.locate(_name(number))} cannot be read ({error}): it was damaged after it was "
                    "written; delete it and run again, then it alone is computed again"
                ) from error
            if found != tuple(slices):
                raise UserError(
                    f"{self._store.locate(_name(number))} holds other slices than its number says, so features would "
                    f"be those of other audio; delete {self.location} and run again"
                )
            self._known.add(number)
        return path

    def _copy(self, number: int) -> Path:
        version = blake2b(self._versions[number].encode(), digest_size=8).hexdigest()
        path = self._copies / f"{version}-{_name(number)}"
        if not path.is_file():
            self._store.download(_name(number), path)
        return path


def _name(number: int) -> str:
    return f"{_PREFIX}{number:05d}{_SUFFIX}"


def _slices_of(path: Path) -> tuple[Slice, ...]:
    with safe_open(path, framework="pt") as file:
        return tuple(Slice(*name) for name in json.loads(file.metadata()["slices"]))
