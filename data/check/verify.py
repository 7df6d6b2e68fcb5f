"""Checks a shard set against its manifest, byte by byte, and lists all damaged shards and samples.

  python -m data verify shards/                     all splits of a corpus
  python -m data verify s3://bucket/scores/train    one split, from an object store
  python -m data verify shards/ --deep              decode every sample too, and compare the statistics

A plain tar reader takes a cut shard for a shorter one, skips the rest after a damaged header, and returns flipped bits
as data. Here length and sha256 check each shard, and its index names the damaged samples. Exit code 0: all as built; 1:
damage found, listed on stdout.
"""

import argparse
import json
import mmap
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from data.check.statistics import Moments
from data.shards.format import (
    INDEX_SUFFIX,
    ShardError,
    ShardIndex,
    check_member,
    decode_mel,
    index_name,
    read_index,
    read_npy,
)
from data.shards.manifest import MANIFEST_NAME, SPLITS, Manifest, ManifestError, ShardEntry, read_manifest
from data.store.files import local_copy
from data.store.store import MissingObjectError, Store, open_store
from pupujepa.errors import unreadable
from pupujepa.progress import Progress

_BLOCK_BYTES = 512
# the sums add the same values in another order
_STATISTICS_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Damage:
    """A difference from the build; `sample` is a uid, or "" for the whole shard or set."""

    shard: str
    sample: str
    what: str

    def __str__(self) -> str:
        where = " ".join(part for part in (self.shard, self.sample and f"sample {self.sample}") if part)
        return f"DAMAGED {where}: {self.what}"


def verify(url: str, *, deep: bool = False) -> list[Damage]:
    """Returns all damage to the shard set of one split; `deep` decodes every sample.

    Raises:
        ManifestError: no readable manifest. StoreError: the store cannot be read.
    """
    manifest, store = read_manifest(url), open_store(url)
    damages = list(_check_folder(store, manifest))
    moments, uids = Moments(int(manifest.frontend["mel_bands"])), set[str]()
    total_bytes = sum(entry.bytes for entry in manifest.shards)
    with Progress(len(manifest.shards), title=f"verify {url}", unit="shards") as progress:
        checked_bytes = 0
        for entry in manifest.shards:
            damages += _check_shard(store, entry, manifest=manifest, moments=moments if deep else None, uids=uids)
            checked_bytes += entry.bytes
            progress.advance(note=f"{checked_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB")
    if deep and manifest.split == "train" and not damages:  # all splits have the training split's statistics
        damages += _check_statistics(moments, manifest)
    return damages


def split_urls(url: str) -> list[str]:
    """Returns [url] for a split, or the splits of a corpus. Raises ManifestError for anything else."""
    store = open_store(url)
    if store.exists(MANIFEST_NAME):
        return [url]
    inside = [store.locate(split) for split in SPLITS if store.exists(f"{split}/{MANIFEST_NAME}")]
    if not inside:
        raise ManifestError(
            f"no {MANIFEST_NAME} in {url} or its splits, so there is no complete shard set; finish the build by "
            "running `python -m data build` again, or correct the path"
        )
    return inside


def _check_folder(store: Store, manifest: Manifest) -> Iterator[Damage]:
    """Yields shards that are not in the manifest: a reader of all tars in the folder would train on them."""
    known = {entry.name for entry in manifest.shards}
    for name in store.list():
        if name.endswith((".tar", f".tar{INDEX_SUFFIX}")) and name.removesuffix(INDEX_SUFFIX) not in known:
            yield Damage(name, "", "not in the manifest; remove it")


def _check_shard(
    store: Store, entry: ShardEntry, *, manifest: Manifest, moments: Moments | None, uids: set[str]
) -> Iterator[Damage]:
    index: ShardIndex | None = None
    try:
        index = read_index(
            store.read(index_name(entry.name)), origin=index_name(entry.name), expected_sha256=entry.index_sha256
        )
    except (MissingObjectError, ShardError) as error:
        yield Damage(index_name(entry.name), "", str(error))
    if index is not None:
        yield from _check_index(entry, index, uids)
    try:
        with local_copy(store, entry.name) as file, _mapped(file) as content:
            found = list(_check_bytes(content, entry, index))
            yield from found
            if moments is not None and index is not None and not found:
                yield from _check_samples(content, entry.name, index, manifest=manifest, moments=moments)
    except MissingObjectError as error:
        yield Damage(entry.name, "", f"missing, with its {entry.samples} samples ({error})")


def _check_index(entry: ShardEntry, index: ShardIndex, uids: set[str]) -> Iterator[Damage]:
    if (len(index), sum(index.frames)) != (entry.samples, entry.frames):
        yield Damage(
            index_name(entry.name),
            "",
            f"lists {len(index)} samples of {sum(index.frames)} frames, the manifest {entry.samples} of {entry.frames}",
        )
    for uid in index.uid:
        if uid in uids:  # across all shards
            yield Damage(entry.name, uid, "is in the set twice")
        uids.add(uid)


def _check_bytes(content: bytes | mmap.mmap, entry: ShardEntry, index: ShardIndex | None) -> Iterator[Damage]:
    """Yields the damage of a shard whose length or digest differs."""
    digest = sha256(content).hexdigest()
    if len(content) == entry.bytes and digest == entry.sha256:
        return
    if not content:
        yield Damage(entry.name, "", f"empty, {entry.bytes} bytes and {entry.samples} samples are lost")
        return
    if not _is_member(content[:_BLOCK_BYTES], None) and not _holds_first_sample(content, index):
        yield Damage(entry.name, "", f"not a tar file: it begins with {bytes(content[:24])!r}")
        return
    named = list(_check_members(content, entry, index)) if index is not None else []
    yield from named
    if named:  # the members explain the other digest
        return
    if len(content) < entry.bytes:
        what = f"cut after its last sample: {len(content)} of {entry.bytes} bytes, no end-of-archive mark"
    elif len(content) > entry.bytes:
        what = f"{len(content) - entry.bytes} bytes too long"
    else:
        what = f"sha256 is {digest}, not {entry.sha256}; the samples are whole" if index else "sha256 differs"
    yield Damage(entry.name, "", what)


def _check_members(content: bytes | mmap.mmap, entry: ShardEntry, index: ShardIndex) -> Iterator[Damage]:
    """Yields each damaged sample; after the end of a cut shard, only the first, with the number lost."""
    for i, (key, uid) in enumerate(zip(index.key, index.uid, strict=True)):
        members = (
            ("json", index.json_offset[i], index.json_bytes[i], index.json_crc32[i]),
            ("mel.npy", index.mel_offset[i], index.mel_bytes[i], index.mel_crc32[i]),
        )
        for member, offset, length, crc32 in members:
            if offset + length > len(content):
                lost = len(index) - i
                yield Damage(
                    entry.name,
                    uid,
                    f"cut at byte {len(content)} of {entry.bytes}: this and the next {lost - 1} are lost",
                )
                return
            if not _is_member(content[offset - _BLOCK_BYTES : offset], f"{key}.{member}"):
                yield Damage(entry.name, uid, f"tar header of {member} damaged: readers stop here without an error")
            try:
                check_member(content[offset : offset + length], crc32, uid=uid, member=member)
            except ShardError as error:
                yield Damage(entry.name, uid, str(error))


def _check_samples(
    content: bytes | mmap.mmap, shard: str, index: ShardIndex, *, manifest: Manifest, moments: Moments
) -> Iterator[Damage]:
    """Yields samples that decode to something wrong: intact bytes may have been written wrong."""
    shape = (int(manifest.frontend["mel_bands"]),)
    for i, uid in enumerate(index.uid):
        info = json.loads(content[index.json_offset[i] : index.json_offset[i] + index.json_bytes[i]])
        stored_TF = read_npy(content[index.mel_offset[i] : index.mel_offset[i] + index.mel_bytes[i]])
        if stored_TF.dtype != np.dtype(manifest.dtype) or stored_TF.shape != (index.frames[i], *shape):
            yield Damage(shard, uid, f"has {stored_TF.dtype} {stored_TF.shape}, not {manifest.dtype} of its index")
            continue
        if (info.get("uid"), info.get("frames")) != (uid, index.frames[i]):
            yield Damage(shard, uid, f"has the JSON of {info.get('uid')} with {info.get('frames')} frames")
        mel_TF = decode_mel(stored_TF, lo=manifest.lo, hi=manifest.hi)
        if not np.isfinite(mel_TF).all():
            yield Damage(shard, uid, "has values that are not finite")
        moments.add(mel_TF)


def _check_statistics(moments: Moments, manifest: Manifest) -> Iterator[Damage]:
    for name, found, expected in (("mean", moments.mean, manifest.mean), ("std", moments.std, manifest.std)):
        if abs(found - expected) > _STATISTICS_TOLERANCE * max(1.0, abs(expected)):
            yield Damage(MANIFEST_NAME, "", f"{name} is {expected}, that of the samples {found}")


def _holds_first_sample(content: bytes | mmap.mmap, index: ShardIndex | None) -> bool:
    """Returns True if only the first header is damaged: the first sample's data is intact."""
    if index is None:
        return False
    start, length = index.json_offset[0], index.json_bytes[0]
    return zlib.crc32(content[start : start + length]) == index.json_crc32[0]


def _is_member(header: bytes, name: str | None) -> bool:
    try:
        # checks the header's checksum
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name == name or name is None
    except tarfile.HeaderError:
        return False


@contextmanager
def _mapped(file: Path) -> Iterator[bytes | mmap.mmap]:
    """Yields the memory-mapped content of a file; an empty file cannot be mapped."""
    try:
        stream = file.open("rb")
    except FileNotFoundError as error:
        raise MissingObjectError(f"{file} does not exist") from error
    except OSError as error:
        raise unreadable(file, error) from error
    with stream:
        if file.stat().st_size == 0:
            yield b""
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `verify`."""
    parser.add_argument("url", metavar="URL", help="a corpus or one split: path, file:// or s3://")
    parser.add_argument("--deep", action="store_true", help="decode every sample and recompute mean and deviation too")


def run(args: argparse.Namespace) -> int:
    """Verifies, lists the damage, and returns 1 if there is any."""
    urls = split_urls(args.url)
    found: Sequence[Damage] = [damage for url in urls for damage in _printed(verify(url, deep=args.deep), url)]
    verdict = f"{len(found)} damages" if found else "all as built"
    sys.stdout.write(f"{', '.join(urls)}: {verdict}\n")
    return 1 if found else 0


def _printed(damages: list[Damage], url: str) -> list[Damage]:
    for damage in damages:
        sys.stdout.write(f"{url}: {damage}\n")
    return damages
