"""Embeddings on disk, one row per audio file: an .npz per file, parquet, or WebDataset tars.

Every row names its file, its readout and its layers. A row is durable before the next one begins, so a killed command
loses the file it was at and nothing else. Parquet and tar parts are packed from finished rows, in the order in which
these were added; the bytes of a part depend on its rows alone.
"""

import fcntl
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pupujepa.durable import PART_SUFFIX, atomic_file
from pupujepa.encoder import Embedding
from pupujepa.errors import UserError
from pupujepa.vector_rows import Row, Settings, read_row, read_settings, write_row

FORMATS = ("npz", "parquet", "wds")
_STAGING = ".unpacked"


class VectorStore(ABC):
    """A folder of rows.

    Args:
        settings: what made the rows; rows made otherwise are refused, or removed when `overwrite`.
    """

    def __init__(self, folder: Path, settings: Settings, *, overwrite: bool = False) -> None:
        self.folder = folder
        self.settings = dict(settings)
        self.overwrite = overwrite

    @abstractmethod
    def finished(self, names: Collection[str]) -> set[str]:
        """Returns which of the files have their row.

        Raises:
            UserError: rows made with other settings, unless `overwrite`; or files that are not of this command.
        """

    @abstractmethod
    def add(self, name: str, embedding: Embedding) -> None:
        """Writes a row; it is on disk when this returns."""

    def close(self) -> None:
        """Completes what is written in parts."""
        return

    def _is_ours(self, path: Path, settings: Settings) -> bool:
        """Whether the rows of a file were made with our settings."""
        if settings == self.settings:
            return True
        if self.overwrite:
            return False
        differing = [key for key in self.settings if settings.get(key) != self.settings[key]]
        raise UserError(
            f"{path} was made with another {' and '.join(differing)}; choose another --out, or pass --overwrite"
        )


class NpzFolder(VectorStore):
    """`<name>.npz` for every file: arrays values, times_s, layers, readout, name, settings."""

    def finished(self, names: Collection[str]) -> set[str]:
        """Returns which of the files have their .npz."""
        paths = {name: self.folder / f"{name}.npz" for name in names}
        return {name for name, path in paths.items() if path.is_file() and self._is_ours(path, read_settings(path))}

    def add(self, name: str, embedding: Embedding) -> None:
        """Writes the .npz."""
        write_row(self.folder / f"{name}.npz", Row(name, embedding, self.settings))


class PartFolder(VectorStore):
    """`part-00000.<suffix>` and so on, each closed when its values reach `part_bytes`."""

    suffix: str

    def __init__(self, folder: Path, settings: Settings, *, part_bytes: int, overwrite: bool = False) -> None:
        super().__init__(folder, settings, overwrite=overwrite)
        self.part_bytes = part_bytes
        self._staging = folder / _STAGING
        self._staged: list[Path] = []
        self._staged_bytes = 0
        self._next_part = 0
        self._next_row = 0

    def finished(self, names: Collection[str]) -> set[str]:
        """Returns which of the files are packed or staged, and takes the staged ones up again."""
        done = self._packed_names()
        for path in sorted(self._staging.glob("*.npz")):
            self._next_row = int(path.stem) + 1
            row = read_row(path)
            if not self._is_ours(path, row.settings) or row.name in done:
                path.unlink()  # packed just before the command was killed, or to be replaced
                continue
            done.add(row.name)
            self._take(path, row.embedding.values.nbytes)
        return done & set(names)

    def add(self, name: str, embedding: Embedding) -> None:
        """Stages the row, and packs a part when enough is staged."""
        path = self._staging / f"{self._next_row:08d}.npz"
        self._next_row += 1
        write_row(path, Row(name, embedding, self.settings))
        self._take(path, embedding.values.nbytes)

    def close(self) -> None:
        """Packs the rows that are left."""
        if self._staged:
            self._pack()
        if self._staging.is_dir():
            shutil.rmtree(self._staging)

    @abstractmethod
    def _write(self, path: Path, rows: Iterator[Row]) -> None: ...

    @abstractmethod
    def _read_names(self, path: Path) -> tuple[Settings, list[str]]: ...

    def _packed_names(self) -> set[str]:
        names: set[str] = set()
        for path in sorted(self.folder.glob(f"part-*.{self.suffix}")):
            settings, own = self._read_names(path)
            if not self._is_ours(path, settings):
                path.unlink()
                continue
            names |= set(own)
            self._next_part = int(path.stem.removeprefix("part-")) + 1
        return names

    def _take(self, path: Path, size_bytes: int) -> None:
        self._staged.append(path)
        self._staged_bytes += size_bytes
        if self._staged_bytes >= self.part_bytes:
            self._pack()

    def _pack(self) -> None:
        with atomic_file(self.folder / f"part-{self._next_part:05d}.{self.suffix}") as temporary:
            self._write(temporary, (read_row(path) for path in self._staged))
        for path in self._staged:
            path.unlink()
        self._staged, self._staged_bytes = [], 0
        self._next_part += 1


def open_store(folder: Path, settings: Settings, *, form: str, part_bytes: int, overwrite: bool) -> VectorStore:
    """Returns the store of a form in FORMATS.

    Raises:
        UserError: parquet without pyarrow.
    """
    if form == "npz":
        return NpzFolder(folder, settings, overwrite=overwrite)
    if form == "wds":
        from pupujepa.tar_store import TarFolder  # it builds on this module

        return TarFolder(folder, settings, part_bytes=part_bytes, overwrite=overwrite)
    try:
        from pupujepa.parquet_store import ParquetFolder
    except ImportError as error:
        raise UserError(
            "parquet needs pyarrow, which is not installed: pip install 'pupujepa[parquet]', or --format npz"
        ) from error
    return ParquetFolder(folder, settings, part_bytes=part_bytes, overwrite=overwrite)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the folder for this process, and clears away what a killed one left half-written.

    Raises:
        UserError: another process writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is writing to {folder}, and two would mix their parts; wait for it, or choose "
                "another --out"
            ) from error
        for leftover in folder.rglob(f".*{PART_SUFFIX}"):
            leftover.unlink()
        yield
    finally:
        os.close(handle)  # which lets go of the lock
