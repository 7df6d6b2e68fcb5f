"""Embeddings as parquet parts, one row per audio file.

Columns: name, size_bytes and modified_ns (of the file), readout, layers, shape, values (float32, in C order of that
shape), times_s. The settings that made the rows are in the schema's metadata, under `pupujepa`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from pupujepa.audio_files import FileState
from pupujepa.encoder import Embedding
from pupujepa.vector_rows import Row, RowHead, Settings, foreign
from pupujepa.vector_stores import PartFolder

_KEY = b"pupujepa"
_GROUP_BYTES = 64 * 2**20


class ParquetFolder(PartFolder):
    """`part-00000.parquet` and so on."""

    suffix = "parquet"

    def _write(self, path: Path, rows: Iterator[Row]) -> None:
        schema = _schema(self.settings)
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            group: list[dict] = []
            group_bytes = 0
            for row in rows:
                group.append(_columns(row))
                group_bytes += row.embedding.values.nbytes
                if group_bytes >= _GROUP_BYTES:
                    writer.write_table(pyarrow.Table.from_pylist(group, schema))
                    group, group_bytes = [], 0
            if group:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))

    def _read_heads(self, path: Path) -> list[RowHead]:
        with _opened(path) as file:
            settings = _settings(file)
            columns = file.read(columns=["name", "size_bytes", "modified_ns"])
            return [_head(row, settings) for row in columns.to_pylist()]

    def _read_rows(self, path: Path) -> Iterator[Row]:
        with _opened(path) as file:
            settings = _settings(file)
            for batch in file.iter_batches(batch_size=1):
                values = batch["values"][0].values.to_numpy()
                row = batch.drop_columns(["values"]).to_pylist()[0]
                times_s = np.asarray(row["times_s"], np.float64)
                embedding = Embedding(values.reshape(row["shape"]), times_s, tuple(row["layers"]), row["readout"])
                yield Row(_head(row, settings), embedding)


@contextmanager
def _opened(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowInvalid, KeyError, ValueError) as error:
        raise foreign(path, error) from error


def _settings(file: pyarrow.parquet.ParquetFile) -> Settings:
    return json.loads((file.schema_arrow.metadata or {})[_KEY])


def _head(row: dict, settings: Settings) -> RowHead:
    return RowHead(row["name"], FileState(row["size_bytes"], row["modified_ns"]), settings)


def _schema(settings: Settings) -> pyarrow.Schema:
    return pyarrow.schema(
        [
            ("name", pyarrow.string()),
            ("size_bytes", pyarrow.int64()),
            ("modified_ns", pyarrow.int64()),
            ("readout", pyarrow.string()),
            ("layers", pyarrow.list_(pyarrow.int32())),
            ("shape", pyarrow.list_(pyarrow.int64())),
            # an hour of frames of all layers has more values than 32-bit offsets can count
            ("values", pyarrow.large_list(pyarrow.float32())),
            ("times_s", pyarrow.list_(pyarrow.float64())),
        ],
        metadata={_KEY: json.dumps(dict(settings)).encode()},
    )


def _columns(row: Row) -> dict:
    head, embedding = row.head, row.embedding
    return {
        "name": head.name,
        "size_bytes": head.state.size_bytes,
        "modified_ns": head.state.modified_ns,
        "readout": embedding.readout,
        "layers": list(embedding.layers),
        "shape": list(embedding.values.shape),
        "values": embedding.values.ravel(),
        "times_s": embedding.times_s,
    }
