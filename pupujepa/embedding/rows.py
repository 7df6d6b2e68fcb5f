"""Rows: the embedding of one audio file as an .npz, with the file's state and the settings."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from pupujepa.audio.find import FileState
from pupujepa.durable import atomic_file
from pupujepa.embedding.encoder import Embedding
from pupujepa.errors import UserError

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
