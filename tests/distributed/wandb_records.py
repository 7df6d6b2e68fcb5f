"""Reads wandb's offline files: its records are protobuf messages of wandb's own, framed as in LevelDB's log."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_FILE_HEADER_BYTES, _BLOCK_BYTES = 7, 32768
_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = range(1, 5)


def records(path: Path) -> Iterator[Any]:
    """Yields the records of a .wandb file; a checksum that does not fit fails."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = _FILE_HEADER_BYTES, []
    while at < len(data):
        left_of_block = _BLOCK_BYTES - at % _BLOCK_BYTES
        if left_of_block < _HEADER.size:
            at += left_of_block
            continue
        checksum, length, kind = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size : at + _HEADER.size + length]
        at += _HEADER.size + length
        if not kind:
            continue
        assert zlib.crc32(bytes([kind]) + body) == checksum
        parts.append(body)
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record
    assert not parts, "the file ends within a record"
