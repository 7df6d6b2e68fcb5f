"""Configuration of a stream over one corpus or a mix of several."""

import math
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from data.store.files import RetryPolicy
from pupujepa.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9_-]+")


class CorpusError(UserError):
    """Corpora that are misconfigured or cannot be read together."""


@dataclass(frozen=True)
class CorpusConfig:
    """One corpus of a mix.

    url: folder of one split: a path, file:// or s3://.
    weight: share of the crops, relative to the other weights.
    """

    url: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class StreamConfig:
    """Settings of a stream.

    url: folder of one split: a path, file:// or s3://.
    mix: several corpora instead of one, by name: `stream.mix.a.url=... stream.mix.a.weight=3 stream.mix.b.url=...`.
    seed: of order, crops and masks.
    crop_frames: frames of a crop; 100 frames are a second.
    global_batch: samples of one step over all ranks and micro-batches.
    lanes: runs that the data is cut into; a multiple of every world size that the run may have.
    window_shards: shards of a lane (and corpus) that are shuffled together and kept in use.
    workers: processes of each rank that make batches; 0 uses the training process.
    crops_per_sample: draws of each sample in an epoch.
    cache_dir: folder on the node's disk for shards of an object store; null: PUPUJEPA_CACHE_DIR, or below the system's
        temporary folder.
    cache_bytes: limit of the cache.
    max_bad_fraction: the run stops if a larger share of a rank's draws of an epoch is damaged.
    prefetch_batches: micro-batches that each worker makes ahead.
    prefetch_bytes: of shards that each rank fetches ahead of its current windows.
    retries: policy for a store with passing failures.
    """

    url: str = ""
    seed: int = 0
    crop_frames: int = 1024
    global_batch: int = 1024
    lanes: int = 8
    window_shards: int = 4
    workers: int = 2
    crops_per_sample: int = 1
    cache_dir: str | None = None
    cache_bytes: int = 64 * 2**30
    max_bad_fraction: float = 0.01
    prefetch_batches: int = 2
    prefetch_bytes: int = 8 * 2**30
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    mix: dict[str, CorpusConfig] = field(default_factory=dict)


def default_cache_dir() -> Path:
    """Returns the default cache folder: the site's, or one per user of the node, kept for the next run."""
    return site_cache_dir() or Path(tempfile.gettempdir()) / f"pupujepa-shards-{os.getuid()}"


def site_cache_dir() -> Path | None:
    """Returns the cache folder that the environment names (slurm/env.sh)."""
    site = os.environ.get("PUPUJEPA_CACHE_DIR")
    return Path(site) if site else None


def named_corpora(config: StreamConfig) -> dict[str, CorpusConfig]:
    """Returns the corpora of a stream, sorted by name; the name of a single one is "".

    Raises:
        CorpusError: no corpus, a url and a mix, or an unusable name, url or weight.
    """
    if not config.mix:
        if not config.url:
            raise CorpusError(
                "stream.url is not set, so there is no training data; set it to a training split, such as "
                "stream.url=shards/train or stream.url=s3://bucket/shards/train"
            )
        return {"": CorpusConfig(config.url)}
    if config.url:
        raise CorpusError(
            f"stream.url={config.url} and stream.mix ({', '.join(sorted(config.mix))}) are both set, which is "
            "ambiguous; give the url a name and a weight in the mix, or drop the mix"
        )
    for name, corpus in config.mix.items():
        if not _NAME.fullmatch(name):
            raise CorpusError(
                f"stream.mix has a corpus named {name!r}, but uids and metric names contain it; use letters, digits, "
                "- and _"
            )
        if not corpus.url:
            raise CorpusError(f"stream.mix.{name}.url is not set, so its share would be missing; set it")
        if not (math.isfinite(corpus.weight) and corpus.weight > 0):
            raise CorpusError(
                f"stream.mix.{name}.weight={corpus.weight} is no share of a batch; use a positive number, or remove "
                "the corpus"
            )
    return dict(sorted(config.mix.items()))


def whole_parts(weights: Mapping[str, float]) -> tuple[int, ...]:
    """Returns the weights as the smallest whole numbers in the same ratio; 0.7 counts as exactly 7/10."""
    # of the decimal text, not of the binary float
    fractions = [Fraction(repr(float(weight))) for weight in weights.values()]
    unit = math.lcm(*(fraction.denominator for fraction in fractions))
    parts = [int(fraction * unit) for fraction in fractions]
    return tuple(part // math.gcd(*parts) for part in parts)
