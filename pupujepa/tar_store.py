"""Embeddings as WebDataset tars: `<key>.values.npy`, `<key>.times_s.npy` and `<key>.json` for every audio file.

Written with the standard library alone, so that embedding needs no WebDataset; any reader of WebDataset takes them.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pupujepa.audio_files import FileState
from pupujepa.encoder import Embedding
from pupujepa.vector_rows import Row, RowHead, foreign
from pupujepa.vector_stores import PartFolder


class TarFolder(PartFolder):
    """`part-00000.tar` and so on."""

    suffix = "tar"

    def _write(self, path: Path, rows: Iterator[Row]) -> None:
        with tarfile.open(path, "w") as tar:
            for row in rows:
                key = tar_key(row.head.name)
                _add_member(tar, f"{key}.values.npy", _npy(row.embedding.values))
                _add_member(tar, f"{key}.times_s.npy", _npy(row.embedding.times_s))
                _add_member(tar, f"{key}.json", json.dumps(_facts(row)).encode())

    def _read_heads(self, path: Path) -> list[RowHead]:
        with _opened(path) as tar:
            members = (member for member in tar if member.name.endswith(".json"))
            heads = [_head(json.loads(_content(tar, member))) for member in members]
        if not heads:
            raise foreign(path, "it holds no rows")
        return heads

    def _read_rows(self, path: Path) -> Iterator[Row]:
        with _opened(path) as tar:
            members = iter(tar)
            for of_values in members:  # a row's three members follow each other
                values, times_s = (np.load(io.BytesIO(_content(tar, m))) for m in (of_values, next(members)))
                facts = json.loads(_content(tar, next(members)))
                yield Row(_head(facts), Embedding(values, times_s, tuple(facts["layers"]), facts["readout"]))


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise foreign(path, error) from error


def _facts(row: Row) -> dict[str, Any]:
    return {
        "name": row.head.name,
        "size_bytes": row.head.state.size_bytes,
        "modified_ns": row.head.state.modified_ns,
        "readout": row.embedding.readout,
        "layers": list(row.embedding.layers),
        "settings": dict(row.head.settings),
    }


def _head(facts: dict[str, Any]) -> RowHead:
    return RowHead(facts["name"], FileState(facts["size_bytes"], facts["modified_ns"]), facts["settings"])


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


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "written as a plain file"
    return file.read()


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner and no time: the same rows give the same bytes
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(content))
