"""Configuration, identity and record of a build."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

from data.building.features import FeatureConfig
from data.building.tracks import SourceTrack
from data.store.files import Store

RECORD_NAME = "build.json"


@dataclass(frozen=True)
class BuildConfig:
    """Settings of a build.

    Args:
        shard_bytes: approximate size of a shard.
        max_rejected: maximum of unusable tracks: a share if below 1, else a number.
        drop_duplicates: keeps only the first of tracks with equal audio.
        group_by: label whose values share a split, or None.
    """

    features: FeatureConfig = field(default_factory=FeatureConfig)
    shard_bytes: int = 256 << 20
    seed: int = 0
    split_fractions: tuple[float, float, float] = (1.0, 0.0, 0.0)
    max_rejected: float = 0.01
    drop_duplicates: bool = False
    group_by: str | None = None

    def bears(self, rejected: int, total: int) -> bool:
        """Returns True if `max_rejected` allows this many unusable tracks."""
        return rejected <= (self.max_rejected * total if self.max_rejected < 1 else self.max_rejected)


def input_digest(tracks: Sequence[SourceTrack], names: Sequence[str], config: BuildConfig) -> str:
    """Returns the identity of a build: files (by path, size, modification time), labels and settings."""
    # max_rejected changes no byte: a build that stopped at it resumes with a higher one
    settings = asdict(config) | {"max_rejected": 0}
    # corpora from before these settings keep their identity
    for name in ("drop_duplicates", "group_by"):
        if not settings[name]:
            del settings[name]
    digest = sha256(json.dumps(settings, sort_keys=True).encode())
    for track, name in zip(tracks, names, strict=True):
        facts: list[Any] = [track.track, track.source, track.split, track.labels, name]
        if config.drop_duplicates:
            facts.append(track.position)  # decides which duplicate stays
        digest.update(json.dumps(facts, sort_keys=True).encode())  # name covers file and features
    return digest.hexdigest()


def write_build_record(store: Store, config: BuildConfig, **facts: Any) -> None:
    """Writes build.json: the settings of the build, and `facts` about it."""
    settings = asdict(config)
    settings["features"].pop("frontend")  # the manifests have it
    store.write(RECORD_NAME, (json.dumps({**facts, "config": settings}, indent=1, sort_keys=True) + "\n").encode())


def read_build_record(store: Store) -> dict[str, Any] | None:
    """Returns the content of build.json, or None if there is none."""
    return json.loads(store.read(RECORD_NAME)) if store.exists(RECORD_NAME) else None
