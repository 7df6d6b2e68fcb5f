"""Shards: WebDataset tars of log-mel spectrograms; equal samples give equal bytes.

A shard is a plain tar that `webdataset.WebDataset(path).decode()` reads: `<key>.mel.npy` [T, F] and `<key>.json`. Its
index, `<shard>.idx`, has the offset and crc32 of each member, so one sample can be fetched, checked and named alone.
Shape legend: T frames, F mel bands.
"""

import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from hashlib import blake2b, sha256
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from webdataset import TarWriter

from pupujepa.errors import UserError

DTYPES = ("uint8", "float16")
INDEX_SUFFIX = ".idx"
_BLOCK_BYTES = 512
_NPY_1_0 = b"\x93NUMPY\x01\x00"
# ustar keeps names of up to 100 bytes; the longest suffix is ".mel.npy"
_MAX_KEY_CHARACTERS = 80


class ShardError(UserError):
    """A shard or sample that differs from its index."""


def encode_mel(mel_TF: np.ndarray, dtype: str, *, lo: float, hi: float) -> np.ndarray:
    """Returns a log-mel spectrogram as stored.

    A uint8 code q means lo + q * (hi - lo) / 255: the error is at most (hi - lo) / 510 within the range; values outside
    are clipped. float16 keeps the values and ignores lo and hi.

    Raises:
        ValueError: unknown dtype.
    """
    if dtype == "float16":
        return mel_TF.astype(np.float16)
    if dtype == "uint8":
        scaled_TF = (mel_TF.astype(np.float32) - np.float32(lo)) * np.float32(255 / (hi - lo))
        return np.rint(scaled_TF).clip(0, 255).astype(np.uint8)
    raise ValueError(f"dtype {dtype!r} is not one of {DTYPES}")


def decode_mel(stored_TF: np.ndarray, *, lo: float, hi: float) -> np.ndarray:
    """Returns float32 log-mel values: `encode_mel` inverted up to rounding. Other dtypes: ValueError."""
    scale, offset = scale_and_offset(stored_TF.dtype, lo=lo, hi=hi)
    # torch takes only writeable arrays; it reads float16 up to a hundred times faster than numpy
    stored_1TF = torch.from_numpy(stored_TF if stored_TF.flags.writeable else stored_TF.copy())[None]
    return decode(stored_1TF, torch.tensor([scale]), torch.tensor([offset]))[0].numpy()


def scale_and_offset(dtype: np.dtype, *, lo: float, hi: float) -> tuple[float, float]:
    """Returns (scale, offset): a stored value q means the log-mel value q * scale + offset.

    Raises:
        ValueError: neither uint8 nor float16.
    """
    if dtype == np.uint8:
        return (hi - lo) / 255, lo
    if dtype == np.float16:
        return 1.0, 0.0
    raise ValueError(f"a shard holds {DTYPES}, not {dtype}")


def decode(stored_BTF: Tensor, scale_B: Tensor, offset_B: Tensor) -> Tensor:
    """Returns q * scale + offset, float32 [B, T, F], on the device of the stored values."""
    mel_BTF = torch.empty(stored_BTF.shape, device=stored_BTF.device)
    # one row stays in a CPU's cache over the three passes; on a GPU many small launches would cost more
    rows = 1 if stored_BTF.device.type == "cpu" else max(1, len(stored_BTF))
    for mel, stored, *affine in zip(*(x.split(rows) for x in (mel_BTF, stored_BTF, scale_B, offset_B))):
        scale, offset = (x[:, None, None] for x in affine)
        mel.copy_(stored).mul_(scale).add_(offset)
    return mel_BTF


def sample_uid(track: str, part: int) -> str:
    """Returns the name, unique in a corpus, of part `part` (from 0) of a track."""
    return f"{track}-{part:04d}"


def sample_key(uid: str) -> str:
    """Returns the tar name of a sample: letters, digits, `_` and `-`; a dot would end a WebDataset key.

    A changed uid gets its digest appended, so that two uids never share a key.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", uid)
    if safe == uid and len(uid) <= _MAX_KEY_CHARACTERS:
        return uid
    return f"{safe[: _MAX_KEY_CHARACTERS - 17]}-{blake2b(uid.encode(), digest_size=8).hexdigest()}"


@dataclass(frozen=True)
class Sample:
    """One stored sample.

    Args:
        info: {uid, track, source, start_s, duration_s, frames, labels?}, JSON-serialisable.
        mel_npy: bytes of the .npy file.
    """

    info: Mapping[str, Any]
    mel_npy: bytes


@dataclass(frozen=True)
class ShardIndex:
    """Positions of the samples of a shard: columns of equal length, in the order of the tar.

    Args:
        key, uid: names in the tar, and unique names in the corpus.
        frames: T of each sample.
        mel_offset, mel_bytes, mel_crc32: of the data of `<key>.mel.npy`, without the tar header.
        json_offset, json_bytes, json_crc32: of the member `<key>.json`.
    """

    key: tuple[str, ...]
    uid: tuple[str, ...]
    frames: tuple[int, ...]
    mel_offset: tuple[int, ...]
    mel_bytes: tuple[int, ...]
    mel_crc32: tuple[int, ...]
    json_offset: tuple[int, ...]
    json_bytes: tuple[int, ...]
    json_crc32: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True)
class WrittenShard:
    """Length, digest and index of a written shard."""

    bytes: int
    sha256: str
    index: ShardIndex


def write_shard(stream: BinaryIO, samples: Iterable[Mapping[str, Any] | Sample]) -> WrittenShard:
    """Writes samples as one tar and returns its facts; equal samples give equal bytes.

    Args:
        stream: receives the tar, never sought.
        samples: `Sample`s, or mappings {"info": ..., "mel": stored array [T, F]}.
    """
    digest = _DigestStream(stream)
    rows: list[tuple[Any, ...]] = []
    # fixed time, owner and mode, so that two builds of one corpus are equal byte by byte
    with TarWriter(digest, encoder=False, mtime=0, user="pupujepa", group="pupujepa", mode=0o644) as tar:
        for sample in samples:
            sample = sample if isinstance(sample, Sample) else Sample(sample["info"], npy_bytes(sample["mel"]))
            uid, key = sample.info["uid"], sample_key(sample.info["uid"])
            info = json_bytes(sample.info)
            # TarWriter writes the members of a sample in the order of their names: json, then mel.npy
            json_offset = tar.tarstream.offset + _BLOCK_BYTES  # data begins after the header block
            mel_offset = json_offset + _padded(len(info)) + _BLOCK_BYTES
            tar.write({"__key__": key, "json": info, "mel.npy": sample.mel_npy})
            assert tar.tarstream.offset == mel_offset + _padded(len(sample.mel_npy)), "the layout of tar changed"
            mel = (mel_offset, len(sample.mel_npy), zlib.crc32(sample.mel_npy))
            rows.append((key, uid, sample.info["frames"], *mel, json_offset, len(info), zlib.crc32(info)))
    columns = list(zip(*rows)) if rows else [()] * len(fields(ShardIndex))  # rows to columns
    return WrittenShard(digest.bytes, digest.sha256.hexdigest(), ShardIndex(*columns))


def npy_bytes(array: np.ndarray) -> bytes:
    """Returns the bytes of a .npy file of `array`, for `read_npy`."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_npy(content: bytes | memoryview) -> np.ndarray:
    """Returns the array of a .npy file, a view of its bytes. Other files and pickles: ValueError."""
    # equal headers are parsed once: numpy evaluates them as Python source, which takes longer than the rest of a sample
    # of the header
    length = 10 + int.from_bytes(content[8:10], "little") if bytes(content[:8]) == _NPY_1_0 else len(content)
    shape, fortran_order, dtype = _npy_header(bytes(content[:length]))
    if len(content) - length != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{len(content) - length} bytes of data are not an array {dtype} {list(shape)}")
    return np.frombuffer(content, dtype, offset=length).reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=8192)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    stream = io.BytesIO(header)
    np.lib.format.read_magic(stream)
    try:
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    # SystemError: Python 3.13 raises it for a header with a null byte
    except (SyntaxError, SystemError, TokenError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"the header of the array is damaged ({error})") from error
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    return shape, fortran_order, dtype


def json_bytes(info: Mapping[str, Any]) -> bytes:
    """Returns the canonical bytes of a sample's JSON member."""
    return json.dumps(info, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def index_name(shard_name: str) -> str:
    """Returns the name of a shard's index."""
    return shard_name + INDEX_SUFFIX


def write_index(index: ShardIndex) -> bytes:
    """Returns the bytes of an index file."""
    return (json.dumps(asdict(index), separators=(",", ":")) + "\n").encode()


def read_index(content: bytes | Path, *, origin: str = "index", expected_sha256: str | None = None) -> ShardIndex:
    """Returns the index in the bytes of an index file, or in a local file.

    Raises:
        ShardError: the digest differs from the manifest's, or it is no index; the message names `origin`.
    """
    if isinstance(content, Path):
        content, origin = content.read_bytes(), str(content)
    if expected_sha256 is not None and sha256(content).hexdigest() != expected_sha256:
        raise ShardError(f"{origin} is not the index that the manifest names (sha256 differs); restore it or rebuild")
    try:
        raw = json.loads(content)
        index = ShardIndex(**{name: tuple(column) for name, column in raw.items()})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(f"{origin} is not the index of a shard ({error}); restore it or rebuild") from error
    if len({len(column) for column in vars(index).values()}) != 1:
        raise ShardError(f"{origin} has columns of different lengths; restore it or rebuild")
    for name, column in vars(index).items():
        kind = str if name in ("key", "uid") else int
        if not set(map(type, column)) <= {kind} or (kind is int and min(column, default=0) < 0):
            raise ShardError(f"{origin} has a column {name} of other values; restore it or rebuild")
    return index


def read_sample(shard: memoryview | bytes, index: ShardIndex, position: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns (stored array [T, F], info) of one sample in the bytes of its shard.

    Raises:
        ShardError: a crc32 differs; the message names the sample.
    """
    uid = index.uid[position]
    mel = _member(shard, index.mel_offset[position], index.mel_bytes[position])
    info = _member(shard, index.json_offset[position], index.json_bytes[position])
    check_member(mel, index.mel_crc32[position], uid=uid, member="mel.npy")
    check_member(info, index.json_crc32[position], uid=uid, member="json")
    return read_npy(mel), json.loads(info)


def check_member(content: bytes | memoryview, crc32: int, *, uid: str, member: str) -> None:
    """Raises ShardError, naming the sample, if the crc32 of the content differs."""
    if zlib.crc32(content) != crc32:
        raise ShardError(f"sample {uid}: {member} is damaged (crc32 differs); fetch the shard again or rebuild")


def _member(shard: memoryview | bytes, offset: int, length: int) -> bytes:
    return bytes(shard[offset : offset + length])


def _padded(length: int) -> int:
    return -(-length // _BLOCK_BYTES) * _BLOCK_BYTES  # up to whole blocks


class _DigestStream:
    """A writer that counts and hashes the bytes it passes on."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.bytes, self.sha256 = stream, 0, sha256()

    def write(self, content: bytes) -> int:
        self.bytes += len(content)
        self.sha256.update(content)
        return self.stream.write(content)
