"""Embeddings on disk, one row per audio file: a store of rows, and its plain form, an .npz per file.

Every row names its file, its readout and its layers. A row is durable before the next one begins, so a killed command
loses the file it was at and nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pupujepa.audio.find import AudioFile
from pupujepa.embedding.encoder import Embedding
from pupujepa.embedding.rows import Row, RowHead, Settings, read_head, write_row
from pupujepa.errors import UserError


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
