"""Embeddings as WebDataset tars: `<key>.values.npy`, `<key>.times_s.npy` and `<key>.json` for every audio file.

Written with the standard library alone, so that embedding needs no WebDataset; any reader of WebDataset takes them.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pupujepa.vector_rows import Row, Settings, foreign
from pupujepa.vector_stores import PartFolder


class TarFolder(PartFolder):
    """`part-00000.tar` and so on."""

    suffix = "tar"

    def _write(self, path: Path, rows: Iterator[Row]) -> None:
        with tarfile.open(path, "w") as tar:
            for row in rows:
                key = tar_key(row.name)
                _add_member(tar, f"{key}.values.npy", _npy(row.embedding.values))
                _add_member(tar, f"{key}.times_s.npy", _npy(row.embedding.times_s))
                facts = {
                    "name": row.name,
                    "readout": row.embedding.readout,
                    "layers": list(row.embedding.layers),
                    "settings": dict(row.settings),
                }
                _add_member(tar, f"{key}.json", json.dumps(facts).encode())

    def _read_names(self, path: Path) -> tuple[Settings, list[str]]:
        names, settings = [], None
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.name.endswith(".json"):
                        file = tar.extractfile(member)
                        assert file is not None, "written as a plain file"
                        facts = json.load(file)
                        names.append(facts["name"])
                        settings = facts["settings"]
        except (tarfile.TarError, KeyError, ValueError) as error:
            raise foreign(path, error) from error
        if settings is None:
            raise foreign(path, "it holds no rows")
        return settings, names


def tar_key(name: str) -> str:
    """Returns a file's key in a tar: its name with the dots of the last part as %2E, since a key ends at the first dot.

    No two names have one key.
    """
    folder, slash, last = name.rpartition("/")
    escaped = re.sub(r"[%.]", lambda match: f"%{ord(match[0]):02X}", last)
    return f"{folder.replace('%', '%25')}{slash}{escaped}"


def _npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner and no time: the same rows give the same bytes
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(content))
