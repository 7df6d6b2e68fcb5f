"""Stores of embeddings, one row per audio file: the interface, and its plain form, an .npz per file.

A row holds the embedding, the state of the file and the settings. It is durable before the next one begins, so a killed
command loses at most the current file.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from pupujepa.audio.find import AudioFile, FileState
from pupujepa.durable import atomic_file
from pupujepa.embedding.encoder import Embedding
from pupujepa.errors import UserError

# of one component of a path, on all common file systems
_LONGEST_NAME_BYTES = 255
_KEPT_NAME_BYTES = 200

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class RowHead:
    """A row's file, the state of that file, and the settings of the embedding."""

    name: str
    state: FileState
    settings: Settings


@dataclass(frozen=True)
class Row:
    """The embedding of one file."""

    head: RowHead
    embedding: Embedding


def write_row(path: Path, row: Row) -> None:
    """Writes an .npz atomically; the inverse of `read_row`."""
    head, embedding = row.head, row.embedding
    with atomic_file(path) as temporary, temporary.open("wb") as file:  # np.savez would add .npz to a path
        np.savez(
            file,
            values=embedding.values,
            times_s=embedding.times_s,
            layers=np.asarray(embedding.layers),
            readout=np.asarray(embedding.readout),
            name=np.asarray(head.name),
            size_bytes=np.asarray(head.state.size_bytes),
            modified_ns=np.asarray(head.state.modified_ns),
            settings=np.asarray(json.dumps(dict(head.settings))),
        )


def read_row(path: Path) -> Row:
    """Reads an .npz.

    Raises:
        UserError: a file that is not of this command.
    """
    with _opened(path) as file:
        layers = tuple(int(layer) for layer in file["layers"])
        embedding = Embedding(file["values"], file["times_s"], layers, str(file["readout"]))
        return Row(_head(file), embedding)


def read_head(path: Path) -> RowHead:
    """Reads the head of an .npz without its values.

    Raises:
        UserError: a file that is not of this command.
    """
    with _opened(path) as file:
        return _head(file)


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with np.load(path) as file:
            yield file
    except (BadZipFile, KeyError, ValueError) as error:
        raise foreign(path, error) from error


def _head(file: Mapping[str, Any]) -> RowHead:
    state = FileState(int(file["size_bytes"]), int(file["modified_ns"]))
    return RowHead(str(file["name"]), state, json.loads(str(file["settings"])))


def foreign(path: Path, why: object) -> UserError:
    """Returns the error for a file of another program in the place of ours."""
    return UserError(f"{path} is not a file of this command ({why}); choose another --out")


@dataclass(frozen=True)
class Stock:
    """Names of files with a row, and of changed files, whose outdated rows were removed."""

    finished: frozenset[str]
    changed: frozenset[str]


class VectorStore(ABC):
    """A folder of rows.

    Args:
        settings: of all rows; rows of other settings are an error, or are removed with `overwrite`.
    """

    def __init__(self, folder: Path, settings: Settings, *, overwrite: bool = False) -> None:
        self.folder = folder
        self.settings = dict(settings)
        self.overwrite = overwrite

    @abstractmethod
    def take_stock(self, files: Sequence[AudioFile]) -> Stock:
        """Finds the rows of files, and removes those of files whose size or time has changed.

        Rows of other files stay. Call it once, before adding the first row.

        Raises:
            UserError: rows made with other settings, unless `overwrite`; or files of another program.
        """

    @abstractmethod
    def add(self, file: AudioFile, embedding: Embedding) -> None:
        """Writes a row; it is on disk when this returns."""

    def close(self) -> None:
        """Completes the last part of a store with parts."""
        return

    def _is_ours(self, path: Path, settings: Settings) -> bool:
        """Returns True for our settings and False for rows to overwrite; raises for others."""
        if settings == self.settings:
            return True
        if self.overwrite:
            return False
        differing = [key for key in self.settings if settings.get(key) != self.settings[key]]
        details = "; ".join(f"{key} {settings.get(key)} and not {self.settings[key]}" for key in differing)
        raise UserError(f"{path} was made with other settings ({details}); choose another --out, or pass --overwrite")


class NpzFolder(VectorStore):
    """A folder of `<name>.npz` files, one per audio file, with the arrays of `write_row`."""

    def take_stock(self, files: Sequence[AudioFile]) -> Stock:
        """Finds the .npz of every file.

        Raises:
            UserError: as all stores do.
        """
        finished, changed = set(), set()
        for file in files:
            path = self._path(file)
            head = read_head(path) if path.is_file() else None
            if head is None or not self._is_ours(path, head.settings):  # `add` replaces rows of other settings
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
        path = self.folder / f"{file.name}.npz"
        name = os.fsencode(path.name)
        if len(name) <= _LONGEST_NAME_BYTES:
            return path
        digest = blake2b(name, digest_size=8).hexdigest()  # the row itself holds the full name
        return path.with_name(f"{name[:_KEPT_NAME_BYTES].decode(errors='ignore')}~{digest}.npz")
