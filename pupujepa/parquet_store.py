"""Embeddings as parquet parts, one row per audio file.

Columns: name, readout, layers, shape, values (float32, in C order of that shape), times_s. The settings that made the
rows are in the schema's metadata, under `pupujepa`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from pupujepa.vector_rows import Row, Settings, foreign
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

    def _read_names(self, path: Path) -> tuple[Settings, list[str]]:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                settings = json.loads((file.schema_arrow.metadata or {})[_KEY])
                return settings, file.read(columns=["name"])["name"].to_pylist()
        except (pyarrow.ArrowInvalid, KeyError, ValueError) as error:
            raise foreign(path, error) from error


def _schema(settings: Settings) -> pyarrow.Schema:
    return pyarrow.schema(
        [
            ("name", pyarrow.string()),
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
    embedding = row.embedding
    return {
        "name": row.name,
        "readout": embedding.readout,
        "layers": list(embedding.layers),
        "shape": list(embedding.values.shape),
        "values": embedding.values.ravel(),
        "times_s": embedding.times_s,
    }
