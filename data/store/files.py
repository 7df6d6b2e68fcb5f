"""The interface of a store, a folder of objects behind a url, and its local form.

A written file appears under its name only when it is complete and on disk: readers take an existing file as complete.
"""

import errno
import os
import random
import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pupujepa.durable import PART_SUFFIX, atomic_file
from pupujepa.errors import UnreadableError, UserError

Location = str
# a disk, a server or a limit that fails now
_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT})


@dataclass(frozen=True)
class RetryPolicy:
    """Limits of retries.

    Args:
        deadline_s: no retry starts later than this after the first failure.
        first_wait_s, max_wait_s: the wait doubles from first to max, less up to half at random, so that a thousand
            clients of one failed server do not return together.
        connect_timeout_s, read_timeout_s: of the connection, and between two pieces of a body.
        min_upload_bytes_per_s: a write may take its size at this rate, plus `read_timeout_s`; the client sets no limit.
        min_download_bytes_per_s: a read fails if it is slower over `read_timeout_s`; a trickling body never times out.

    Raises:
        UserError: a limit is not positive.
    """

    deadline_s: float = 120.0
    first_wait_s: float = 0.2
    max_wait_s: float = 10.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    min_upload_bytes_per_s: float = 1e5
    min_download_bytes_per_s: float = 1e5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(
                    f"{name} {value:g} of the store's retries must be positive; leave it out for its default"
                )

    def wait_s(self, failures: int, rng: random.Random) -> float:
        """Returns the wait after the `failures`-th failure (from 1)."""
        # the exponent is bounded because 2.0**1100 overflows
        return min(self.max_wait_s, self.first_wait_s * 2.0 ** min(failures - 1, 60)) * rng.uniform(0.5, 1.0)


class StoreError(UserError):
    """A location that cannot be read or written: names the url, the cause and the remedy."""


class MissingObjectError(StoreError):
    """The store answers, but has no object of this name."""


class ExistingObjectError(StoreError):
    """The store already has an object of this name."""


class Store(ABC):
    """A folder of objects. Paths are relative to `url`; the empty path is `url` itself."""

    def __init__(self, url: Location):
        self.url = url.rstrip("/") or "/"
        self._retries_of_thread: Counter[int] = Counter()

    @property
    def retries(self) -> int:
        """Retries of all operations so far."""
        return self._retries_of_thread.total()

    @property
    def retries_of_this_thread(self) -> int:
        """Retries of operations of the calling thread."""
        return self._retries_of_thread[threading.get_ident()]

    def _count_retry(self) -> None:
        self._retries_of_thread[threading.get_ident()] += 1

    def locate(self, path: str = "") -> Location:
        """Returns the full location of `path`."""
        return f"{self.url.rstrip('/')}/{path}" if path else self.url

    def local_path(self, path: str = "") -> Path | None:
        """Returns the file of `path` if it is on this machine, else None."""
        return None

    @abstractmethod
    def read(self, path: str = "") -> bytes:
        """Returns the whole object. Raises MissingObjectError, StoreError."""

    @abstractmethod
    def read_range(self, path: str, offset: int, *, length: int) -> bytes:
        """Returns `length` bytes from `offset`. Stores do not check ranged reads: check them by a digest."""

    @abstractmethod
    def download(self, path: str, local_path: Path | str) -> int:
        """Copies the object to a local file, published when complete; returns its length in bytes."""

    @abstractmethod
    def write(self, path: str, content: bytes) -> None:
        """Stores the object; readers see the old one or the new one, never a part."""

    @abstractmethod
    def create(self, path: str, content: bytes) -> bool:
        """Stores the object if the name is free. Returns True if it did."""

    @abstractmethod
    def upload(self, local_path: Path | str, path: str) -> None:
        """Stores a local file like `write`."""

    @abstractmethod
    def exists(self, path: str = "") -> bool:
        """Returns True if the object exists. A missing bucket is an error, not False."""

    @abstractmethod
    def size(self, path: str = "") -> int:
        """Returns the length in bytes. Raises MissingObjectError."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """Returns the sorted paths, relative to `url`, that begin with `prefix`."""

    @abstractmethod
    def versions(self, prefix: str = "") -> dict[str, str]:
        """Returns, for each object of `list(prefix)`, a mark that changes when the object is replaced."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Removes the object; a missing one is no error."""


class LocalStore(Store):
    """A folder of this machine or of a shared file system."""

    def __init__(self, url: Location, *, root: Path):
        super().__init__(url)
        self.root = root

    def local_path(self, path: str = "") -> Path:
        """Returns the file of `path`, existing or not."""
        return self.root / path if path else self.root

    def read(self, path: str = "") -> bytes:
        """Returns the whole file."""
        with _named(self.locate(path)):
            return self.local_path(path).read_bytes()

    def read_range(self, path: str, offset: int, *, length: int) -> bytes:
        """Returns `length` bytes from `offset`. Raises StoreError if the file is shorter."""
        with _named(self.locate(path)), self.local_path(path).open("rb") as file:
            file.seek(offset)
            content = file.read(length)
        if len(content) != length:
            raise StoreError(
                f"{self.locate(path)} ends before byte {offset + length}: it was cut; restore or rebuild it"
            )
        return content

    def download(self, path: str, local_path: Path | str) -> int:
        """Copies the file."""
        with _named(self.locate(path)), atomic_file(Path(local_path)) as temporary:
            shutil.copyfile(self.local_path(path), temporary)
            return temporary.stat().st_size

    def write(self, path: str, content: bytes) -> None:
        """Writes the file: temporary file, fsync, rename."""
        with _named(self.locate(path)), atomic_file(self.local_path(path)) as temporary:
            temporary.write_bytes(content)

    def create(self, path: str, content: bytes) -> bool:
        """Creates the file with O_EXCL: only one process can, over NFS too. Readers may see it empty."""
        with _named(self.locate(path)):
            self.local_path(path).parent.mkdir(parents=True, exist_ok=True)
            try:
                with self.local_path(path).open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except FileExistsError:
                return False
        return True

    def upload(self, local_path: Path | str, path: str) -> None:
        """Copies a file into the store."""
        with _named(self.locate(path)), atomic_file(self.local_path(path)) as temporary:
            shutil.copyfile(local_path, temporary)

    def exists(self, path: str = "") -> bool:
        """Returns True if the file exists."""
        with _named(self.locate(path)):
            return self.local_path(path).is_file()

    def size(self, path: str = "") -> int:
        """Returns the length of the file."""
        with _named(self.locate(path)):
            return self.local_path(path).stat().st_size

    def list(self, prefix: str = "") -> list[str]:
        """Returns the sorted paths below the folder that begin with `prefix`."""
        # no unfinished files
        files = (file for file in self._files() if file.is_file() and file.suffix != PART_SUFFIX)
        with _named(self.url):
            names = [file.relative_to(self.root).as_posix() for file in files]
        return sorted(name for name in names if name.startswith(prefix))

    def _files(self) -> Iterator[Path]:
        """Yields all files below the folder.

        Raises:
            OSError: it cannot be read now, where rglob would yield none.
        """

        def tell(error: OSError) -> None:
            # a subfolder of somebody else, such as lost+found, is left out
            is_root = error.filename == os.fspath(self.root) and not isinstance(error, FileNotFoundError)
            if is_root or error.errno in _PASSING:
                raise error

        for folder, _, names in os.walk(self.root, onerror=tell):
            yield from (Path(folder, name) for name in names)

    def versions(self, prefix: str = "") -> dict[str, str]:
        """Returns the length and modification time of each file."""
        status = {name: self.local_path(name).stat() for name in self.list(prefix)}
        return {name: f"{found.st_size} {found.st_mtime_ns}" for name, found in status.items()}

    def remove(self, path: str) -> None:
        """Removes the file."""
        with _named(self.locate(path)):
            self.local_path(path).unlink(missing_ok=True)


@contextmanager
def local_copy(store: Store, path: str) -> Iterator[Path]:
    """Yields the object as a local file: the file itself, or a temporary copy."""
    own = store.local_path(path)
    if own is not None:
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="pupujepa-") as folder:
        copy = Path(folder) / f"copy{Path(path).suffix}"  # keys may be longer than file names
        store.download(path, copy)
        yield copy


@contextmanager
def new_file(store: Store, path: str) -> Iterator[Path]:
    """Yields a temporary local file; when the block succeeds, it becomes the object `path`."""
    own = store.local_path(path)
    if own is not None:
        with _named(store.locate(path)), atomic_file(own) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="pupujepa-") as folder:
        yield Path(folder) / "new"
        store.upload(Path(folder) / "new", path)


@contextmanager
def _named(location: Location) -> Iterator[None]:
    try:
        yield
    except UnreadableError:
        raise  # of another file, read meanwhile
    except FileNotFoundError as error:
        raise MissingObjectError(f"{location} does not exist; correct the path or restore the file") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise StoreError(
            f"{location} cannot be used: {error.strerror}; choose another path or fix its permissions"
        ) from error
    except OSError as error:
        if error.errno not in _PASSING:
            raise
        raise StoreError(
            f"{error.filename or location} cannot be used now ({error.strerror}, errno {error.errno}), which says "
            "nothing about its content; remedy that and run again"
        ) from error
