"""Crops for the pictures: held-out music first, read by the index, checked, the same each time."""

import shutil

import numpy as np
import pytest

from data.shards.format import decode_mel, read_index, read_sample
from data.shards.manifest import read_manifest
from distributed.report.inputs import ReportError
from distributed.report.samples import held_out, read_gallery


def test_the_test_split_is_preferred(made_run):
    """Whether the corpus, its training split or the split itself is named."""
    root = made_run.parent / "shards"
    assert {held_out(str(root)), held_out(str(root / "train")), held_out(str(root / "test"))} == {str(root / "test")}


def test_a_place_without_shards_is_named(tmp_path):
    """The message says what was looked for."""
    with pytest.raises(ReportError, match=r"no shard set at .*: it has neither manifest\.json"):
        held_out(str(tmp_path))


def test_crops_are_cut_from_their_samples(made_run):
    """Values, offset and labels are those of the shard; the same seed gives the same crops, of different sources."""
    home = made_run.parent / "shards" / "test"
    gallery = read_gallery(str(home), crop_frames=128, count=3)
    manifest = read_manifest(str(home))
    index, shard = read_index(home / "shard-000000.tar.idx"), (home / "shard-000000.tar").read_bytes()
    assert len({c.source for c in gallery.crops}) == 3
    for crop in gallery.crops:
        stored, info = read_sample(shard, index, index.uid.index(crop.uid))
        start = round(crop.offset_s / gallery.frame_s)
        whole = decode_mel(stored, lo=manifest.lo, hi=manifest.hi)
        np.testing.assert_array_equal(crop.mel_TF, whole[start : start + 128])
        assert crop.labels == info["labels"]
    again = read_gallery(str(home), crop_frames=128, count=3)
    assert [(c.uid, c.offset_s) for c in again.crops] == [(c.uid, c.offset_s) for c in gallery.crops]


def test_a_damaged_sample_is_not_shown(made_run, tmp_path):
    """A flipped byte raises instead of drawing noise."""
    home = tmp_path / "test"
    shutil.copytree(made_run.parent / "shards" / "test", home)
    shard, index = home / "shard-000000.tar", read_index(home / "shard-000000.tar.idx")
    content = bytearray(shard.read_bytes())
    for offset in index.mel_offset:
        content[offset + 500] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"mel\.npy is damaged"):
        read_gallery(str(home), crop_frames=128, count=1)


def test_samples_shorter_than_a_crop_are_refused(made_run):
    """Rather than padded pictures of nothing."""
    with pytest.raises(ReportError, match=r"no sample in .* is 4096 frames long"):
        read_gallery(str(made_run.parent / "shards" / "test"), crop_frames=4096, count=1)
