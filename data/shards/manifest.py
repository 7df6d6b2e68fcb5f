"""The manifest of a shard set: its shards by digest, written last, so it means a complete set.

Plain tar readers take a cut or overwritten shard for a shorter one. So the manifest has the count, bytes and digest of
each shard, which readers check.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property
from hashlib import sha256
from typing import Any, get_type_hints

from data.store.store import MissingObjectError, open_store
from pupujepa.errors import UserError
from pupujepa.names import require_plain_path

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "valid", "test")


class ManifestError(UserError):
    """A missing or unusable manifest."""


@dataclass(frozen=True)
class ShardEntry:
    """One shard of the manifest.

    Args:
        name: file name, relative to the manifest.
        samples, frames: counts in the shard.
        bytes, sha256: of the tar file.
        index_sha256: of the index `<name>.idx`.
    """

    name: str
    samples: int
    frames: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Manifest:
    """A complete shard set of one split.

    Args:
        frontend: parameters of the front end, `asdict(FrontendConfig)`.
        dtype: "uint8" (codes of [lo, hi]) or "float16" (values).
        lo, hi: range of the uint8 codes, natural log of mel magnitude.
        mean, std: over all values of the *training* split of the corpus, whichever split this is.
        audio_hours, tracks: of this split.
        clipped_values: mel values above `hi`, which were clipped.
    """

    split: str
    frontend: Mapping[str, Any]
    frontend_digest: str
    dtype: str
    lo: float
    hi: float
    mean: float
    std: float
    audio_hours: float
    tracks: int
    shards: tuple[ShardEntry, ...]
    clipped_values: int = 0
    format_version: int = FORMAT_VERSION

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def frames(self) -> int:
        """Frames of all shards."""
        return sum(shard.frames for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON, which identifies the corpus for order, resume and results."""
        # asdict copies every field of every shard: too slow for 50,000 shards
        plain = asdict(replace(self, shards=())) | {"shards": [vars(shard) for shard in self.shards]}
        return sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_json(manifest: Manifest) -> bytes:
    """Returns the bytes of `manifest.json`, for `from_json`."""
    return (json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n").encode()


def from_json(text: bytes, *, origin: str = MANIFEST_NAME) -> Manifest:
    """Returns the manifest of `to_json`.

    Raises:
        ManifestError: not JSON, another format version, missing or unknown fields; the message names `origin`.
        UserError: a shard's name leads out of the folder.
    """
    remedy = "the shard set cannot be trusted; build it again with `python -m data build`"
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{origin} is not JSON ({error}); {remedy}") from error
    if not isinstance(raw, dict) or raw.get("format_version") != FORMAT_VERSION:
        found = raw.get("format_version") if isinstance(raw, dict) else None
        if isinstance(found, int) and found > FORMAT_VERSION:
            remedy = "update this program"
        raise ManifestError(f"{origin} has format version {found!r}, this code reads {FORMAT_VERSION}; {remedy}")
    _require_fields(Manifest, raw, origin=origin)
    for shard in raw["shards"]:
        _require_fields(ShardEntry, shard, origin=origin)
        require_plain_path(shard["name"], origin=origin)
    shards = tuple(ShardEntry(**shard) for shard in raw.pop("shards"))
    return Manifest(shards=shards, **raw)


def read_manifest(url: str) -> Manifest:
    """Reads `url`/manifest.json.

    Args:
        url: folder of one split, such as `s3://bucket/corpus/train`.

    Raises:
        ManifestError: missing (an unfinished build, or `url` is a corpus and not a split) or broken.
        StoreError: the store cannot be read.
    """
    store = open_store(url)
    try:
        return from_json(store.read(MANIFEST_NAME), origin=f"{url}/{MANIFEST_NAME}")
    except MissingObjectError as error:
        # a likely mistake: the corpus, not a split
        inside = [split for split in SPLITS if store.exists(f"{split}/{MANIFEST_NAME}")]
        if inside:
            remedy = f"it holds the splits {', '.join(inside)}: use {url.rstrip('/')}/{inside[0]}"
        else:
            remedy = "finish the build by running `python -m data build` again, or correct the path"
        raise ManifestError(f"no {MANIFEST_NAME} in {url}, so there is no complete shard set; {remedy}") from error


def write_manifest(url: str, manifest: Manifest) -> None:
    """Writes the manifest, which publishes the shard set in the folder `url`; call it last."""
    open_store(url).write(MANIFEST_NAME, to_json(manifest))


def _require_fields(schema: type, raw: Any, *, origin: str) -> None:
    if not isinstance(raw, dict):
        raise ManifestError(f"{origin}: {str(raw)[:40]} is not a {schema.__name__}; build the shards again")
    expected, found = _field_types(schema), raw.keys()
    if expected.keys() != found:
        missing, unknown = sorted(expected.keys() - found), sorted(found - expected.keys())
        raise ManifestError(
            f"{origin}: {schema.__name__} lacks fields {missing} and has unknown fields {unknown}, so another version "
            "wrote it; build the shards again with `python -m data build`"
        )
    for name, kinds in expected.items():
        value = raw[name]
        if (
            not isinstance(value, kinds)
            or isinstance(value, bool)
            or (value != value)
            or value in (math.inf, -math.inf)
        ):
            raise ManifestError(f"{origin}: {name} is {str(value)[:40]}; build the shards again")
        if isinstance(value, int) and value < 0 and name not in ("lo", "hi", "mean"):
            raise ManifestError(f"{origin}: {name} is {value}, less than nothing; build the shards again")


@cache
def _field_types(schema: type) -> dict[str, tuple[type, ...]]:
    """Returns the JSON types of each field; a whole number may stand for a real one."""
    kinds = {int: (int,), float: (int, float), str: (str,)}
    hints = get_type_hints(schema)
    return {f.name: kinds.get(hints[f.name], (list,) if f.name == "shards" else (dict,)) for f in fields(schema)}
