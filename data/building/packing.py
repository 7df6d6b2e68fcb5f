"""The plan of samples in shards, and the writing of one shard, a pure function of the plan.

Samples are dealt like cards: each round gives every shard one, in a new random order. So shards have equal numbers of
samples (within one), every shard is a random draw of the corpus, and the parts of a track are in different shards if
there are enough shards.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from data.building.features import FeaturePart, TrackFacts, sample_info
from data.building.spool import read_part
from data.building.tracks import SourceTrack
from data.shards.format import Sample, index_name, sample_uid, write_index, write_shard
from data.shards.manifest import ShardEntry
from data.store.files import LocalStore, Location
from data.store.store import open_location
from pupujepa.durable import atomic_file
from pupujepa.randomness import generator


@dataclass(frozen=True)
class PlannedSample:
    """A sample's part in the spool, and the fields of its JSON."""

    track: SourceTrack
    uid: str
    spool_name: str
    part: FeaturePart
    frames_per_s: float


@dataclass(frozen=True)
class PlannedShard:
    """One shard of a split, in the order of its samples."""

    split: str
    name: str
    samples: tuple[PlannedSample, ...]

    @property
    def digest(self) -> str:
        """Identity of the shard's bytes: the content of every member, and their order."""
        digest = sha256(self.name.encode())
        for sample in self.samples:
            digest.update(repr((sample.uid, sample.part, sample.frames_per_s)).encode())
            digest.update(json.dumps([sample.track.source, sample.track.labels], sort_keys=True).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class SpooledTrack:
    """A track whose parts are in the spool."""

    track: SourceTrack
    spool_name: str
    facts: TrackFacts


def plan_shards(
    tracks: Sequence[SpooledTrack], split: str, *, seed: int, shard_bytes: int, frames_per_s: float
) -> list[PlannedShard]:
    """Returns the shards of a split, of about `shard_bytes` each, shuffled by `seed`."""
    # independent of the input's order
    tracks = sorted((t for t in tracks if t.track.split == split), key=lambda t: t.track.track)
    total_bytes = sum(part.bytes for t in tracks for part in t.facts.parts)
    samples = sum(len(t.facts.parts) for t in tracks)
    if not samples:
        return []
    shards = min(samples, max(1, -(-total_bytes // shard_bytes)))  # no empty shard
    order = generator(seed, "tracks", split).permutation(len(tracks))
    hands = deal_parts([len(tracks[i].facts.parts) for i in order], shards, key=(seed, "deal", split))
    piles: list[list[PlannedSample]] = [[] for _ in range(shards)]
    for i, hand in zip(order, hands, strict=True):
        spooled = tracks[i]
        for number, (part, shard) in enumerate(zip(spooled.facts.parts, hand, strict=True)):
            uid = sample_uid(spooled.track.track, number)
            piles[shard].append(PlannedSample(spooled.track, uid, spooled.spool_name, part, frames_per_s))
    return [
        PlannedShard(
            split, f"{split}-{number:06d}.tar", tuple(pile[i] for i in _shuffle(len(pile), seed, split, number))
        )
        for number, pile in enumerate(piles)
    ]


def deal_parts(parts_of_track: Sequence[int], shards: int, *, key: tuple[int | str, ...]) -> list[list[int]]:
    """Returns, for each track, the shards of its parts.

    Shards get equally many parts, within one. No shard gets a second part of a track before all have one.
    """
    round_number = 0
    deck: list[int] = []
    hands: list[list[int]] = []
    for parts in parts_of_track:
        hand: list[int] = []
        while len(hand) < parts:
            if not deck:
                deck = generator(*key, round_number).permutation(shards).tolist()
                round_number += 1
                # shards that this track has just used come last
                recent = set(hand[len(hand) // shards * shards :])  # of the track's current round
                deck = [shard for shard in deck if shard not in recent] + [shard for shard in deck if shard in recent]
            hand.append(deck.pop(0))
        hands.append(hand)
    return hands


def pack_shard(shard: PlannedShard, *, spool: Location, url: Location) -> ShardEntry:
    """Writes a shard and its index to `url` and returns its entry; a receipt in `spool` saves a rerun.

    The index is published first, so that a published shard always has one.
    """
    receipt, spooled, store = f"{shard.digest}.shard", open_location(spool), open_location(url)
    if spooled.exists(receipt):
        entry = ShardEntry(**json.loads(spooled.read(receipt)))
        # done before a kill
        if store.exists(index_name(shard.name)) and store.exists(shard.name) and store.size(shard.name) == entry.bytes:
            return entry
    with TemporaryDirectory(prefix="pupujepa-", dir=spooled.local_path()) as temporary:
        # a local shard is written in its final folder, one for a store in the spool
        folder = store.root if isinstance(store, LocalStore) else Path(temporary)
        with atomic_file(folder / shard.name) as file:
            with file.open("wb") as stream:
                written = write_shard(stream, (_load(sample, spool) for sample in shard.samples))
            index = write_index(written.index)
            store.write(index_name(shard.name), index)
        if not isinstance(store, LocalStore):
            store.upload(folder / shard.name, shard.name)
    entry = ShardEntry(
        name=shard.name,
        samples=len(shard.samples),
        frames=sum(sample.part.frames for sample in shard.samples),
        bytes=written.bytes,
        sha256=written.sha256,
        index_sha256=sha256(index).hexdigest(),
    )
    spooled.write(receipt, json.dumps(asdict(entry)).encode())
    return entry


def _load(sample: PlannedSample, spool: Location) -> Sample:
    info = sample_info(sample.track, sample.uid, part=sample.part, frames_per_s=sample.frames_per_s)
    return Sample(info, read_part(spool, sample.spool_name, sample.part))


def _shuffle(count: int, seed: int, split: str, number: int) -> list[int]:
    return generator(seed, "shuffle", split, number).permutation(count).tolist()
