"""What a build makes of its input, and the identity that follows from both."""

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
    """What a build makes of its input.

    Args:
        shard_bytes: about how large a shard becomes.
        max_rejected: below 1 a share of the inputs, from 1 on a number of them; more stop the build.
        drop_duplicates: of tracks with equal audio only the first of the input is kept.
        group_by: the label that splits do not tear apart, or None.
    """

    features: FeatureConfig = field(default_factory=FeatureConfig)
    shard_bytes: int = 256 << 20
    seed: int = 0
    split_fractions: tuple[float, float, float] = (1.0, 0.0, 0.0)
    max_rejected: float = 0.01
    drop_duplicates: bool = False
    group_by: str | None = None

    def bears(self, rejected: int, total: int) -> bool:
        """Whether so many unusable tracks are still allowed."""
        return rejected <= (self.max_rejected * total if self.max_rejected < 1 else self.max_rejected)


def input_digest(tracks: Sequence[SourceTrack], names: Sequence[str], config: BuildConfig) -> str:
    """Returns the identity of a build: of its files (by path, size and time of change), labels and settings."""
    # how many files may fail changes no byte: a build that stopped for it goes on when it is raised
    settings = asdict(config) | {"max_rejected": 0}
    # corpora that were built before these settings existed keep their identity
    for name in ("drop_duplicates", "group_by"):
        if not settings[name]:
            del settings[name]
    digest = sha256(json.dumps(settings, sort_keys=True).encode())
    for track, name in zip(tracks, names, strict=True):
        facts: list[Any] = [track.track, track.source, track.split, track.labels, name]
        if config.drop_duplicates:
            facts.append(track.position)  # the first one stays
        digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def write_build_record(store: Store, config: BuildConfig, **facts: Any) -> None:
    """Writes build.json: how the corpus was built, and `facts` about it."""
    settings = asdict(config)
    settings["features"].pop("frontend")  # the manifests have it
    store.write(RECORD_NAME, (json.dumps({**facts, "config": settings}, indent=1, sort_keys=True) + "\n").encode())


def read_build_record(store: Store) -> dict[str, Any] | None:
    """Returns what build.json says, or None when there is none."""
    return json.loads(store.read(RECORD_NAME)) if store.exists(RECORD_NAME) else None
