"""The corpora of a stream, checked against each other, with one normalisation.

The mean and deviation are those of the *mix*, each corpus weighted by its share of the crops. The released layout
stores them beside the weights. One normalisation per corpus would need to know, at inference, the corpus of a song, and
would hide the loudness and density of the corpora from the model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Any

from data.shards.manifest import Manifest, read_manifest
from data.stream.config import CorpusConfig, CorpusError, StreamConfig, named_corpora, whole_parts


@dataclass(frozen=True)
class StreamCorpus:
    """One corpus of a stream; the name of a single one is ""."""

    name: str
    url: str
    manifest: Manifest

    def uid(self, uid: str) -> str:
        """Returns the uid of a sample in the stream; two corpora may have equal uids."""
        return f"{self.name}/{uid}" if self.name else uid


@dataclass(frozen=True)
class Corpora:
    """The corpora of a stream, with their shares as whole numbers.

    Raises:
        CorpusError: different front ends, or one shard set twice.
    """

    members: tuple[StreamCorpus, ...]
    parts: tuple[int, ...]

    def __post_init__(self):
        assert len(self.members) == len(self.parts) > 0
        first = self.members[0]
        for index, corpus in enumerate(self.members):
            if corpus.manifest.frontend_digest != first.manifest.frontend_digest:
                raise CorpusError(
                    f"corpus {first.name} ({first.url}) and corpus {corpus.name} ({corpus.url}) come from different "
                    f"front ends ({_differences(first.manifest.frontend, corpus.manifest.frontend)}), so their "
                    "spectrograms do not suit one model; rebuild one with the other's parameters"
                )
            for other in self.members[:index]:
                if other.manifest.digest == corpus.manifest.digest:
                    raise CorpusError(
                        f"corpora {other.name} ({other.url}) and {corpus.name} ({corpus.url}) are the same shard set, "
                        "so its samples would come twice; name it once, with both weights added"
                    )

    @cached_property
    def digest(self) -> str:
        """Identity of the data: the digest of a single manifest, or one over names and digests."""
        if len(self.members) == 1:
            return self.members[0].manifest.digest
        named = {corpus.name: corpus.manifest.digest for corpus in self.members}
        return sha256(json.dumps(named, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the crops; they sum to 1."""
        return tuple(part / sum(self.parts) for part in self.parts)

    @cached_property
    def mean(self) -> float:
        """Mean log-mel value of the crops."""
        return sum(share * corpus.manifest.mean for share, corpus in zip(self.shares, self.members))

    @cached_property
    def std(self) -> float:
        """Standard deviation of the log-mel values of the crops, including that between corpora."""
        if len(self.members) == 1:
            return self.members[0].manifest.std
        # E[x^2] = var + mean^2
        squares = ((corpus.manifest.std**2 + corpus.manifest.mean**2) for corpus in self.members)
        mean_of_squares = sum(share * square for share, square in zip(self.shares, squares))
        return max(mean_of_squares - self.mean**2, 0.0) ** 0.5

    @property
    def frontend(self) -> Mapping[str, Any]:
        """Parameters of the common front end."""
        return self.members[0].manifest.frontend

    @property
    def frontend_digest(self) -> str:
        """Digest of the common front end."""
        return self.members[0].manifest.frontend_digest

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """Of the corpora, in their order."""
        return tuple(corpus.manifest for corpus in self.members)

    @property
    def urls(self) -> tuple[str, ...]:
        """Of the corpora, in their order."""
        return tuple(corpus.url for corpus in self.members)

    def describe(self) -> str:
        """Returns the corpora and shares as text, such as `3 fma + 1 scores`; "" for a single corpus."""
        if len(self.members) == 1:
            return ""
        return " + ".join(f"{part} {corpus.name}" for part, corpus in zip(self.parts, self.members))


def read_corpora(config: StreamConfig) -> Corpora:
    """Reads the manifests of a stream's corpora.

    Raises:
        CorpusError: a misconfigured corpus, or corpora that do not fit each other.
        ManifestError, StoreError: a manifest is missing, broken or unreachable.
    """
    named = named_corpora(config)
    return join(named, {name: read_manifest(corpus.url) for name, corpus in named.items()})


def join(named: Mapping[str, CorpusConfig], manifests: Mapping[str, Manifest]) -> Corpora:
    """Returns the corpora with the manifests given."""
    # a single corpus has no name, so that its uids, and thereby its crops, are those of stream.url
    alone = len(named) == 1
    members = [StreamCorpus("" if alone else name, corpus.url, manifests[name]) for name, corpus in named.items()]
    return Corpora(tuple(members), whole_parts({name: corpus.weight for name, corpus in named.items()}))


def divided(count: int, parts: Sequence[int]) -> list[int]:
    """Returns `count` split in proportion to `parts`, each within one of its exact share."""
    ends = [0, *(round(count * before / sum(parts)) for before in accumulate(parts))]
    return [end - start for start, end in pairwise(ends)]


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    keys = [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]
    return ", ".join(f"{key} {first.get(key)} and {second.get(key)}" for key in keys)
