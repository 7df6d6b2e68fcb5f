"""Fixed crops for the diagnostics during training and for the report."""

import logging
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data.order.epoch import permutation
from data.reading.reader import BadSampleError, ShardReader
from data.shards.manifest import Manifest, read_manifest
from data.stream.batches import crop_start
from pupujepa.audio.log_mel import LOG_FLOOR

_LOG = logging.getLogger(__name__)


def draw_fixed_crops(
    url: str, count: int, *, crop_frames: int, seed: int, manifest: Manifest | None = None
) -> tuple[NDArray[np.float32], list[str]]:
    """Returns (log-mel [count, crop_frames, F], **not** normalised, uids) by the arguments alone.

    Each crop is of another sample, from few shards: a shard is a random draw of the corpus. A smaller set
    gives one crop per sample. Damaged samples are skipped and logged.

    Raises:
        ShardError, StoreError, ManifestError: the set or a shard cannot be read.
    """
    manifest = manifest or read_manifest(url)
    reader = ShardReader(url, manifest)
    crops: list[NDArray[np.float32]] = []
    uids: list[str] = []
    try:
        for shard, index in _candidates(manifest, count, seed):
            if len(crops) == count:
                break
            try:
                mel_TF, info = reader.read(shard, index)
            except BadSampleError as error:
                _LOG.warning("skipping a fixed crop: %s", error)
                continue
            start = crop_start(len(mel_TF), crop_frames, key=(seed, "probe", info["uid"]))
            crop_TF = mel_TF[start : start + crop_frames]
            crops.append(np.pad(crop_TF, ((0, crop_frames - len(crop_TF)), (0, 0)), constant_values=LOG_FLOOR))
            uids.append(str(info["uid"]))
    finally:
        reader.close()
    bands = int(manifest.frontend["mel_bands"])
    return np.stack(crops) if crops else np.empty((0, crop_frames, bands), dtype=np.float32), uids


def _candidates(manifest: Manifest, count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Yields (shard, sample of shard), shuffled within groups of shards of at least `count` samples."""
    group: list[tuple[int, int]] = []
    for shard in permutation(len(manifest.shards), seed, "probe shards").tolist():
        group += [(shard, index) for index in range(manifest.shards[shard].samples)]
        if len(group) >= count:
            yield from (group[i] for i in permutation(len(group), seed, "probe samples", shard))
            group = []  # too few intact samples: the next group of shards
    yield from group
