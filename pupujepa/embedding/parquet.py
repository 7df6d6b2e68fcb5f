"""Embeddings as parquet parts, one row per audio file.

Columns: name, size_bytes and modified_ns (of the file), readout, layers, shape, values (float32, in C order of that
shape), times_s. The settings that made the rows are in the schema's metadata, under `pupujepa`.

Finished rows are staged as .npz files and packed into parts in the order of their addition. The bytes of a part depend
on its rows only.
"""

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from pupujepa.audio.find import AudioFile, FileState
from pupujepa.durable import atomic_file
from pupujepa.embedding.encoder import Embedding
from pupujepa.embedding.stores import Row, RowHead, Settings, Stock, VectorStore, foreign, read_row, write_row

_KEY = b"pupujepa"
_GROUP_BYTES = 64 * 2**20
_STAGING = ".unpacked"


class ParquetFolder(VectorStore):
    """A folder of parts `part-00000.parquet` and so on, each closed when its values reach `part_bytes`."""

    def __init__(self, folder: Path, settings: Settings, *, part_bytes: int, overwrite: bool = False) -> None:
        super().__init__(folder, settings, overwrite=overwrite)
        self.part_bytes = part_bytes
        self._staging = folder / _STAGING
        self._staged: list[Path] = []
        self._staged_bytes = 0
        self._next_row = 0

    def take_stock(self, files: Sequence[AudioFile]) -> Stock:
        """Finds the packed and staged rows, and resumes with the staged ones.

        Raises:
            UserError: as all stores do.
        """
        states = {file.name: file.state for file in files}
        packed = self._packed_heads()
        changed = {name for heads in packed.values() for name in _outdated(heads, states)}
        for path, heads in packed.items():
            self._repack(path, heads, without=changed)
        done = {head.name for heads in packed.values() for head in heads} - changed
        for path in sorted(self._staging.glob("*.npz")):  # numbered names: the order of a straight run
            self._next_row = int(path.stem) + 1
            row = read_row(path)
            outdated = set(_outdated([row.head], states))
            changed |= outdated
            if not self._is_ours(path, row.head.settings) or outdated or row.head.name in done:
                path.unlink()  # packed just before a kill, outdated, or made with other settings
                continue
            done.add(row.head.name)
            self._take(path, row.embedding.values.nbytes)
        return Stock(frozenset(done & set(states)), frozenset(changed))

    def add(self, file: AudioFile, embedding: Embedding) -> None:
        """Stages the row, and packs a part if enough is staged."""
        path = self._staging / f"{self._next_row:08d}.npz"
        self._next_row += 1
        write_row(path, Row(RowHead(file.name, file.state, self.settings), embedding))
        self._take(path, embedding.values.nbytes)

    def close(self) -> None:
        """Packs the remaining rows."""
        if self._staged:
            self._pack()
        if self._staging.is_dir():
            shutil.rmtree(self._staging)

    def _write(self, path: Path, rows: Iterator[Row]) -> None:
        schema = _schema(self.settings)
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            group: list[dict] = []
            group_bytes = 0
            for row in rows:
                head, embedding = row.head, row.embedding
                group.append(
                    {
                        "name": head.name,
                        "size_bytes": head.state.size_bytes,
                        "modified_ns": head.state.modified_ns,
                        "readout": embedding.readout,
                        "layers": list(embedding.layers),
                        "shape": list(embedding.values.shape),
                        "values": embedding.values.ravel(),
                        "times_s": embedding.times_s,
                    }
                )
                group_bytes += row.embedding.values.nbytes
                if group_bytes >= _GROUP_BYTES:
                    writer.write_table(pyarrow.Table.from_pylist(group, schema))
                    group, group_bytes = [], 0
            if group:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))

    def _read_rows(self, path: Path) -> Iterator[Row]:
        with _opened(path) as file:
            settings = _settings(file)
            for batch in file.iter_batches(batch_size=1):  # one row can be gigabytes
                values = batch["values"][0].values.to_numpy()  # to_pylist would make a Python float of each value
                row = batch.drop_columns(["values"]).to_pylist()[0]
                times_s = np.asarray(row["times_s"], np.float64)
                embedding = Embedding(values.reshape(row["shape"]), times_s, tuple(row["layers"]), row["readout"])
                yield Row(_head(row, settings), embedding)

    def _packed_heads(self) -> dict[Path, list[RowHead]]:
        """Returns the heads of all parts, and removes parts that --overwrite replaces."""
        heads: dict[Path, list[RowHead]] = {}
        for path in sorted(self.folder.glob("part-*.parquet")):
            with _opened(path) as file:
                settings = _settings(file)
                rows = file.read(columns=["name", "size_bytes", "modified_ns"]).to_pylist()
            own = [_head(row, settings) for row in rows]
            if all(self._is_ours(path, head.settings) for head in own):
                heads[path] = own
            else:
                path.unlink()
        return heads

    def _repack(self, path: Path, heads: Sequence[RowHead], *, without: Collection[str]) -> None:
        """Rewrites a part without some of its rows."""
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
        parts = (self.folder / f"part-{number:05d}.parquet" for number in count())
        # the first unused name, so that numbers have no gaps
        with atomic_file(next(path for path in parts if not path.exists())) as temporary:
            self._write(temporary, (read_row(path) for path in self._staged))
        for path in self._staged:  # only now: a kill in between leaves rows twice, which take_stock resolves
            path.unlink()
        self._staged, self._staged_bytes = [], 0


def _outdated(heads: Iterable[RowHead], states: Mapping[str, FileState]) -> Iterator[str]:
    """Yields the names of rows whose file has changed; files outside `states` count as unchanged."""
    return (head.name for head in heads if head.state != states.get(head.name, head.state))


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
            # large_list, because an hour of frames of all layers has more values than 32-bit offsets allow
            ("values", pyarrow.large_list(pyarrow.float32())),
            ("times_s", pyarrow.list_(pyarrow.float64())),
        ],
        metadata={_KEY: json.dumps(dict(settings)).encode()},
    )
