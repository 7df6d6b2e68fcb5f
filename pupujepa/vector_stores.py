"""Embeddings on disk, one row per audio file: an .npz per file, parquet, or WebDataset tars.

Every row names its file, its readout and its layers. A row is durable before the next one begins, so a killed command
loses the file it was at and nothing else. Parquet and tar parts are packed from finished rows, in the order in which
these were added; the bytes of a part depend on its rows alone.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from pupujepa.audio_files import AudioFile, FileState
from pupujepa.durable import atomic_file
from pupujepa.encoder import Embedding
from pupujepa.errors import UserError
from pupujepa.vector_rows import Row, RowHead, Settings, read_head, read_row, write_row

FORMATS = ("npz", "parquet", "wds")
_STAGING = ".unpacked"


@dataclass(frozen=True)
class Stock:
    """Which files have their row; and which had one, now removed, of what they were before they were changed."""

    finished: frozenset[str]
    changed: frozenset[str]


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
    def take_stock(self, files: Sequence[AudioFile]) -> Stock:
        """Finds the rows of files, and removes those of files that have another size or time by now.

        Rows of files that are not asked for stay. Call it once, before the first row is added.

        Raises:
            UserError: rows made with other settings, unless `overwrite`; or files that are not of this command.
        """

    @abstractmethod
    def add(self, file: AudioFile, embedding: Embedding) -> None:
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
        details = "; ".join(f"{key} {settings.get(key)} and not {self.settings[key]}" for key in differing)
        raise UserError(f"{path} was made with other settings ({details}); choose another --out, or pass --overwrite")


class NpzFolder(VectorStore):
    """`<name>.npz` for every file: arrays values, times_s, layers, readout, name, size_bytes, modified_ns, settings."""

    def take_stock(self, files: Sequence[AudioFile]) -> Stock:
        """Looks for the .npz of every file.

        Raises:
            UserError: as all stores do.
        """
        finished, changed = set(), set()
        for file in files:
            path = self._path(file)
            head = read_head(path) if path.is_file() else None
            if head is None or not self._is_ours(path, head.settings):
                continue
            if head.state == file.state:
                finished.add(file.name)
            else:
                path.unlink()
                changed.add(file.name)
        return Stock(frozenset(finished), frozenset(changed))

    def add(self, file: AudioFile, embedding: Embedding) -> None:
        """Writes the .npz."""
        write_row(self._path(file), Row(RowHead(file.name, file.state, self.settings), embedding))

    def _path(self, file: AudioFile) -> Path:
        return self.folder / f"{file.name}.npz"


class PartFolder(VectorStore):
    """`part-00000.<suffix>` and so on, each closed when its values reach `part_bytes`."""

    suffix: str

    def __init__(self, folder: Path, settings: Settings, *, part_bytes: int, overwrite: bool = False) -> None:
        super().__init__(folder, settings, overwrite=overwrite)
        self.part_bytes = part_bytes
        self._staging = folder / _STAGING
        self._staged: list[Path] = []
        self._staged_bytes = 0
        self._next_row = 0

    def take_stock(self, files: Sequence[AudioFile]) -> Stock:
        """Finds which files are packed or staged, and takes the staged ones up again.

        Raises:
            UserError: as all stores do.
        """
        states = {file.name: file.state for file in files}
        packed = self._packed_heads()
        changed = {name for heads in packed.values() for name in _outdated(heads, states)}
        for path, heads in packed.items():
            self._repack(path, heads, without=changed)
        done = {head.name for heads in packed.values() for head in heads} - changed
        for path in sorted(self._staging.glob("*.npz")):
            self._next_row = int(path.stem) + 1
            row = read_row(path)
            outdated = set(_outdated([row.head], states))
            changed |= outdated
            if not self._is_ours(path, row.head.settings) or outdated or row.head.name in done:
                path.unlink()  # packed just before the command was killed, or to be replaced
                continue
            done.add(row.head.name)
            self._take(path, row.embedding.values.nbytes)
        return Stock(frozenset(done & set(states)), frozenset(changed))

    def add(self, file: AudioFile, embedding: Embedding) -> None:
        """Stages the row, and packs a part when enough is staged."""
        path = self._staging / f"{self._next_row:08d}.npz"
        self._next_row += 1
        write_row(path, Row(RowHead(file.name, file.state, self.settings), embedding))
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
    def _read_heads(self, path: Path) -> list[RowHead]: ...

    @abstractmethod
    def _read_rows(self, path: Path) -> Iterator[Row]: ...

    def _packed_heads(self) -> dict[Path, list[RowHead]]:
        """Reads the heads of all parts, and removes parts that are to be replaced."""
        heads: dict[Path, list[RowHead]] = {}
        for path in sorted(self.folder.glob(f"part-*.{self.suffix}")):
            own = self._read_heads(path)
            if all(self._is_ours(path, head.settings) for head in own):
                heads[path] = own
            else:
                path.unlink()
        return heads

    def _repack(self, path: Path, heads: Sequence[RowHead], *, without: Collection[str]) -> None:
        """Takes rows out of a part."""
        kept = [head.name for head in heads if head.name not in without]
        if not kept:
            path.unlink()
        elif len(kept) < len(heads):
            with atomic_file(path) as temporary:
                self._write(temporary, (row for row in self._read_rows(path) if row.head.name not in without))

    def _take(self, path: Path, size_bytes: int) -> None:
        self._staged.append(path)
        self._staged_bytes += size_bytes
        if self._staged_bytes >= self.part_bytes:
            self._pack()

    def _pack(self) -> None:
        with atomic_file(self._free_part()) as temporary:
            self._write(temporary, (read_row(path) for path in self._staged))
        for path in self._staged:
            path.unlink()
        self._staged, self._staged_bytes = [], 0

    def _free_part(self) -> Path:
        """Returns the first name that no part has, so that parts are numbered without gaps."""
        parts = (self.folder / f"part-{number:05d}.{self.suffix}" for number in count())
        return next(path for path in parts if not path.exists())


def _outdated(heads: Iterable[RowHead], states: Mapping[str, FileState]) -> Iterator[str]:
    """Yields the names of rows whose file is another by now; nothing is known of a file that is not asked for."""
    return (head.name for head in heads if head.state != states.get(head.name, head.state))


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
