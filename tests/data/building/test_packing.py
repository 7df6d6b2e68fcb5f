"""Existing corpora keep their bytes and identity when the build gains features."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from data.building.config import BuildConfig, input_digest
from data.building.features import FeaturePart, TrackFacts
from data.building.packing import SpooledTrack, pack_shard, plan_shards
from data.building.tracks import AudioPlace, SourceTrack
from data.shards.format import npy_bytes

# of the first version that was published; samples, and the beginnings of the digests of shard and index
SHARDS = {
    "train-000000.tar": (7, "46da0defb2391f12", "944d960e49821a4f"),
    "train-000001.tar": (6, "d68655c61ad56181", "6cb8729edf638b49"),
    "train-000002.tar": (6, "45334b8562898322", "af92b711b7952966"),
    "train-000003.tar": (6, "1cd1441a92a31c66", "834e0c1b855d6999"),
    "train-000004.tar": (7, "e60b04933eb553ec", "88ad64592644c843"),
    "valid-000000.tar": (3, "c048ab98a7fc8074", "d6f991432efb1b50"),
}
IDENTITY = "a9594fe7f505e7e8e36650ad15aab8b26068eb64c4820c34a59d97e98e998fe4"


@pytest.fixture
def spooled(tmp_path: Path) -> list[SpooledTrack]:
    """Nine tracks of one to seven parts with fixed values, which depend on no arithmetic."""
    (tmp_path / "spool").mkdir()
    tracks = []
    for i in range(9):
        parts, content, start = [], b"", 0
        for k in range(1 + i * 5 % 7):
            frames = 20 + (i + k) % 3
            npy = npy_bytes(np.full((frames, 128), i * 16 + k, dtype=np.uint8))
            parts.append(FeaturePart(start, frames, len(content), len(npy), zlib.crc32(npy)))
            content += npy
            start += frames
        (tmp_path / "spool" / f"s{i}.parts").write_bytes(content)
        labels = {"artist": "é", "bpm": i}
        track = SourceTrack(f"album/{i} song.x", AudioPlace("x"), "songs", "valid" if i % 4 == 3 else "train", labels)
        tracks.append(SpooledTrack(track, f"s{i}", TrackFacts("", tuple(parts))))
    return tracks


def test_the_same_parts_become_the_same_shards(spooled: list[SpooledTrack], tmp_path: Path):
    """Plan, order, tar and index are those of the first version, byte for byte."""
    found = {}
    for split in ("train", "valid"):
        for shard in plan_shards(spooled, split, seed=3, shard_bytes=20_000, frames_per_s=100.0):
            entry = pack_shard(shard, spool=f"{tmp_path}/spool", url=f"{tmp_path}/{split}")
            found[entry.name] = (entry.samples, entry.sha256[:16], entry.index_sha256[:16])
    assert found == SHARDS


def test_a_corpus_keeps_its_identity(spooled: list[SpooledTrack]):
    """A corpus of the first version is still the same build, so the command keeps it; new settings differ."""
    tracks, names = [s.track for s in spooled], [s.spool_name for s in spooled]
    assert input_digest(tracks, names, BuildConfig(seed=3)) == IDENTITY
    assert input_digest(tracks, names, BuildConfig(seed=3, max_rejected=7)) == IDENTITY
    for other in (BuildConfig(seed=3, drop_duplicates=True), BuildConfig(seed=3, group_by="artist")):
        assert input_digest(tracks, names, other) != IDENTITY


def test_a_damaged_spool_is_named(spooled: list[SpooledTrack], tmp_path: Path):
    """A flipped bit between decoding and packing does not reach a shard."""
    file = tmp_path / "spool" / "s0.parts"
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(content)
    shards = plan_shards(spooled, "train", seed=3, shard_bytes=10**9, frames_per_s=100.0)
    with pytest.raises(ValueError, match=r"s0.parts is damaged; remove the folder .*spool and build again"):
        pack_shard(shards[0], spool=f"{tmp_path}/spool", url=f"{tmp_path}/train")
    assert not list((tmp_path / "train").glob("*.tar"))
