"""Synthetic shards and manifests for measurements beside the simulation: random codes of real size."""

from dataclasses import asdict
from hashlib import sha256
from io import BytesIO

import numpy as np

from data.shards.format import encode_mel, index_name, sample_uid, write_index, write_shard
from data.shards.manifest import Manifest, ShardEntry, write_manifest
from data.store.store import open_store
from pupujepa.audio.log_mel import LOG_FLOOR, FrontendConfig, frontend_digest
from pupujepa.randomness import generator

HI = 2.71


def manifest_of(shards: tuple[ShardEntry, ...], *, hours: float) -> Manifest:
    """Returns the manifest of a training split of uint8 shards."""
    return Manifest(
        split="train",
        frontend=asdict(FrontendConfig()),
        frontend_digest=frontend_digest(FrontendConfig()),
        dtype="uint8",
        lo=LOG_FLOOR,
        hi=HI,
        mean=-4.0,
        std=2.0,
        audio_hours=hours,
        tracks=sum(shard.samples for shard in shards),
        shards=shards,
    )


def imagined_manifest(shards: int, *, samples_per_shard: int, frames: int, shard_bytes: int, hours: float) -> Manifest:
    """Returns a manifest without shards, with names and digests of real length."""
    entries = tuple(
        ShardEntry(
            name=f"train-{number:06d}.tar",
            samples=samples_per_shard,
            frames=samples_per_shard * frames,
            bytes=shard_bytes,
            sha256=sha256(str(number).encode()).hexdigest(),
            index_sha256=sha256(f"{number}.idx".encode()).hexdigest(),
        )
        for number in range(shards)
    )
    return manifest_of(entries, hours=hours)


def write_shards(url: str, *, shards: int, samples_per_shard: int, frames: int) -> Manifest:
    """Writes a shard set of random codes and returns its manifest."""
    store, entries = open_store(url), []
    for number in range(shards):
        rng = generator(0, "synthetic shard", number)
        samples = []
        for sample in range(samples_per_shard):
            track = f"track-{number}-{sample}"
            mel_TF = rng.uniform(LOG_FLOOR, HI, (frames, FrontendConfig().mel_bands)).astype(np.float32)
            info = {"uid": sample_uid(track, 0), "track": track, "source": "synthetic", "start_s": 0.0}
            info |= {"duration_s": frames / FrontendConfig().frames_per_s, "frames": frames}
            samples.append({"info": info, "mel": encode_mel(mel_TF, "uint8", lo=LOG_FLOOR, hi=HI)})
        stream, name = BytesIO(), f"train-{number:06d}.tar"
        written = write_shard(stream, samples)
        index = write_index(written.index)
        store.write(name, stream.getvalue())
        store.write(index_name(name), index)
        size, digest = written.bytes, written.sha256
        entries.append(ShardEntry(name, len(samples), len(samples) * frames, size, digest, sha256(index).hexdigest()))
    hours = shards * samples_per_shard * frames / FrontendConfig().frames_per_s / 3600
    manifest = manifest_of(tuple(entries), hours=hours)
    write_manifest(url, manifest)
    return manifest
