"""A few crops of music for the page, read by the index of a shard set, never a whole shard.

The test split comes first, then validation: the model was not trained on this music.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.shards.format import check_member, decode_mel, index_name, read_index, read_npy
from data.shards.manifest import Manifest, read_manifest
from data.store.store import Store, open_store
from distributed.report.inputs import ReportError
from pupujepa.randomness import generator

PREFERENCE = ("test", "valid", "train")


@dataclass(frozen=True)
class SampleCrop:
    """A crop of one sample.

    Args:
        mel_TF: natural-log mel, before normalisation, [T, F].
        offset_s: start of the crop in its track.
        labels: of the whole sample.
    """

    uid: str
    track: str
    source: str
    mel_TF: np.ndarray
    offset_s: float
    labels: Mapping[str, Any]


@dataclass(frozen=True)
class Gallery:
    """Crops with their shard set."""

    url: str
    manifest: Manifest
    crops: tuple[SampleCrop, ...]

    @property
    def frame_s(self) -> float:
        """Seconds from frame to frame."""
        return self.manifest.frontend["hop_samples"] / self.manifest.frontend["sample_rate_hz"]


def read_gallery(url: str, *, crop_frames: int, count: int) -> Gallery:
    """Reads `count` crops, of different sources if possible; always the same ones.

    Args:
        url: a shard set, or a corpus root with one per split.

    Raises:
        ReportError: no shard set, or no sample as long as a crop.
        StoreError: the store cannot be reached.
    """
    home = held_out(url)
    manifest, store = read_manifest(home), open_store(home)
    shard = manifest.shards[int(generator(0, "report", "shard").integers(len(manifest.shards)))]
    index = read_index(store.read(index_name(shard.name)), origin=index_name(shard.name))
    rng = generator(0, "report", "samples")
    long_enough = [int(i) for i in rng.permutation(len(index)) if index.frames[i] >= crop_frames]
    if not long_enough:
        raise ReportError(f"no sample in {shard.name} of {home} is {crop_frames} frames long; choose another --shards")
    # a few more than needed, to choose different sources from
    candidates = [_read_crop(store, manifest, shard.name, index, i, crop_frames, rng) for i in long_enough[: 4 * count]]
    return Gallery(home, manifest, tuple(_varied(candidates, count)))


def held_out(url: str) -> str:
    """Returns the first split of PREFERENCE beside or below `url`, else `url` itself."""
    url = url.rstrip("/")
    parent, _, last = url.rpartition("/")
    roots = [parent] if last == "train" else []
    for root in [*roots, url]:
        store = open_store(root)
        for split in PREFERENCE:
            if store.exists(f"{split}/manifest.json"):
                return f"{root}/{split}"
    if open_store(url).exists("manifest.json"):
        return url
    raise ReportError(f"no shard set at {url}: it has neither manifest.json nor {', '.join(PREFERENCE)}")


def _read_crop(store: Store, manifest: Manifest, name: str, index, i: int, crop_frames: int, rng) -> SampleCrop:
    mel = store.read_range(name, index.mel_offset[i], length=index.mel_bytes[i])
    info = store.read_range(name, index.json_offset[i], length=index.json_bytes[i])
    check_member(mel, index.mel_crc32[i], uid=index.uid[i], member="mel.npy")
    check_member(info, index.json_crc32[i], uid=index.uid[i], member="json")
    mel_TF = decode_mel(read_npy(mel), lo=manifest.lo, hi=manifest.hi)
    start = int(rng.integers(len(mel_TF) - crop_frames + 1))
    described = json.loads(info)
    frame_s = manifest.frontend["hop_samples"] / manifest.frontend["sample_rate_hz"]
    return SampleCrop(
        uid=described["uid"],
        track=described["track"],
        source=described["source"],
        mel_TF=mel_TF[start : start + crop_frames],
        offset_s=described["start_s"] + start * frame_s,
        labels=described.get("labels") or {},
    )


def _varied(candidates: list[SampleCrop], count: int) -> list[SampleCrop]:
    """Returns `count` crops: first one of every source, then the rest, each by descending contrast."""
    ranked = sorted(candidates, key=lambda c: -float(c.mel_TF.std()))
    first = {c.source: c for c in reversed(ranked)}
    chosen = sorted(first.values(), key=ranked.index)
    return [*chosen, *(c for c in ranked if c not in chosen)][:count]
