"""A few crops of music for the page, read by the index of a shard set, never a whole shard.

The test split comes first, then validation: the model was not trained on this music.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.reading.reader import ShardReader
from data.shards.format import index_name, read_index
from data.shards.manifest import Manifest, read_manifest
from data.store.store import open_store
from distributed.report.inputs import ReportError
from pupujepa.randomness import generator

PREFERENCE = ("test", "valid", "train")  # splits, the least trained on first


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
    manifest = read_manifest(home)
    number = int(generator(0, "report", "shard").integers(len(manifest.shards)))
    name = manifest.shards[number].name
    frames = read_index(open_store(home).read(index_name(name)), origin=index_name(name)).frames
    rng = generator(0, "report", "samples")
    long_enough = [int(i) for i in rng.permutation(len(frames)) if frames[i] >= crop_frames]
    if not long_enough:
        raise ReportError(f"no sample in {name} of {home} is {crop_frames} frames long; choose another --shards")
    gallery = Gallery(home, manifest, ())
    crops = []
    with closing(ShardReader(home, manifest)) as reader:
        for i in long_enough[: 4 * count]:  # a few more than needed, to choose different sources from
            mel_TF, info = reader.read(number, i)
            start = int(rng.integers(len(mel_TF) - crop_frames + 1))
            crops.append(
                SampleCrop(
                    uid=info["uid"],
                    track=info["track"],
                    source=info["source"],
                    mel_TF=mel_TF[start : start + crop_frames],
                    offset_s=info["start_s"] + start * gallery.frame_s,
                    labels=info.get("labels") or {},
                )
            )
    # first one crop of every source, then the rest, each by descending contrast
    ranked = sorted(crops, key=lambda c: -float(c.mel_TF.std()))
    first = sorted({c.source: c for c in reversed(ranked)}.values(), key=ranked.index)
    return replace(gallery, crops=tuple([*first, *(c for c in ranked if c not in first)][:count]))


def held_out(url: str) -> str:
    """Returns the first split of PREFERENCE beside or below `url`, else `url` itself."""
    url = url.rstrip("/")
    parent, _, last = url.rpartition("/")
    roots = [parent] if last == "train" else []  # the splits of a corpus lie side by side
    for root in [*roots, url]:
        store = open_store(root)
        for split in PREFERENCE:
            if store.exists(f"{split}/manifest.json"):
                return f"{root}/{split}"
    if open_store(url).exists("manifest.json"):
        return url
    raise ReportError(f"no shard set at {url}: it has neither manifest.json nor {', '.join(PREFERENCE)}")
