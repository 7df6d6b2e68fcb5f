"""One row: the embedding of one audio file as an .npz that says what it is and what made it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from pupujepa.durable import atomic_file
from pupujepa.encoder import Embedding
from pupujepa.errors import UserError

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """The embedding of one file, and the settings that made it."""

    name: str
    embedding: Embedding
    settings: Settings


def write_row(path: Path, row: Row) -> None:
    """Writes an .npz that is either complete or absent; `read_row` is the exact opposite."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            values=row.embedding.values,
            times_s=row.embedding.times_s,
            layers=np.asarray(row.embedding.layers),
            readout=np.asarray(row.embedding.readout),
            name=np.asarray(row.name),
            settings=np.asarray(json.dumps(dict(row.settings))),
        )


def read_row(path: Path) -> Row:
    """Reads an .npz.

    Raises:
        UserError: a file that is not of this command.
    """
    try:
        with np.load(path) as file:
            layers = tuple(int(layer) for layer in file["layers"])
            embedding = Embedding(file["values"], file["times_s"], layers, str(file["readout"]))
            return Row(str(file["name"]), embedding, json.loads(str(file["settings"])))
    except (BadZipFile, KeyError, ValueError) as error:
        raise foreign(path, error) from error


def read_settings(path: Path) -> Settings:
    """Reads the settings of an .npz without its values.

    Raises:
        UserError: a file that is not of this command.
    """
    try:
        with np.load(path) as file:
            return json.loads(str(file["settings"]))
    except (BadZipFile, KeyError, ValueError) as error:
        raise foreign(path, error) from error


def foreign(path: Path, why: object) -> UserError:
    """Returns the error for a file that lies where ours should, and is not."""
    return UserError(f"{path} is not a file of this command ({why}); choose another --out")
