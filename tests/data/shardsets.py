"""Small synthetic shard sets with identifiable samples: value [t, 0] is t, value [t, 1] the sample's number."""

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from data.shards.format import encode_mel, index_name, sample_uid, write_index, write_shard
from data.shards.manifest import Manifest, ShardEntry, write_manifest
from data.store.files import Location
from data.store.store import open_store
from pupujepa.audio.log_mel import LOG_FLOOR, FrontendConfig, frontend_digest

LO, HI = LOG_FLOOR, LOG_FLOOR + 255 / 16
_FRONTEND = FrontendConfig()


def code_value(code: int) -> float:
    """The log-mel value of the uint8 code."""
    return LO + code / 16


def make_mel(number: int, num_frames: int, *, lo: float = LO) -> np.ndarray:
    """The log-mel spectrogram [T, 128] of sample `number`, in steps of 1/16 from `lo`."""
    codes_TF = np.random.default_rng(number).integers(0, 256, (num_frames, 128))
    codes_TF[:, 0] = np.arange(num_frames) % 256
    codes_TF[:, 1] = number % 256
    return (lo + codes_TF / 16).astype(np.float32)


def build_shard_set(
    url: Location,
    samples_per_shard: Sequence[int] = (7, 5, 6, 6),
    *,
    dtype: str = "uint8",
    num_frames: Callable[[int], int] = lambda number: 40 + number % 9,
    lo: float = LO,
    moments: tuple[float, float] = (-4.0, 2.0),
    frontend: FrontendConfig = _FRONTEND,
) -> Manifest:
    """Writes a shard set and returns its manifest; sample `number` counts over all shards.

    Args:
        lo: of the range of uint8 codes, which is as wide in all sets.
        moments: mean and deviation that the manifest says.
    """
    hi = lo + HI - LO
    store, number, entries = open_store(url), 0, []
    for shard, num_samples in enumerate(samples_per_shard):
        samples = []
        for _ in range(num_samples):
            mel_TF = make_mel(number, num_frames(number), lo=lo)
            frames = len(mel_TF)
            info = {"uid": sample_uid(f"track{number}", 0), "track": f"track{number}", "source": "synthetic"}
            info |= {"start_s": 0.0, "duration_s": frames / 100, "frames": frames}
            samples.append({"info": info, "mel": encode_mel(mel_TF, dtype, lo=lo, hi=hi)})
            number += 1
        stream = io.BytesIO()
        written = write_shard(stream, samples)
        name = f"shard-{shard:06d}.tar"
        index = write_index(written.index)
        store.write(name, stream.getvalue())
        store.write(index_name(name), index)
        frames = sum(sample["info"]["frames"] for sample in samples)
        entries.append(make_entry(name, stream.getvalue(), index, samples=num_samples, frames=frames))
    manifest = Manifest(
        split="train",
        frontend=asdict(frontend),
        frontend_digest=frontend_digest(frontend),
        dtype=dtype,
        lo=lo,
        hi=hi,
        mean=moments[0],
        std=moments[1],
        audio_hours=0.1,
        tracks=number,
        shards=tuple(entries),
    )
    write_manifest(url, manifest)
    return manifest


def make_entry(name: str, shard: bytes, index: bytes, *, samples: int, frames: int) -> ShardEntry:
    """The manifest's entry for the bytes of a shard and its index."""
    from hashlib import sha256

    return ShardEntry(name, samples, frames, len(shard), sha256(shard).hexdigest(), sha256(index).hexdigest())
