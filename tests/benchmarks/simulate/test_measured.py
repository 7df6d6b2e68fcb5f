"""The simulation and a real stream fetch the same shards."""

from dataclasses import replace

from benchmarks.simulate import measured
from benchmarks.simulate.corpus import imagined_manifest, write_shards
from benchmarks.simulate.start import measure_start
from data.shards.format import index_name
from data.shards.manifest import from_json, to_json
from data.store.store import open_store


def test_a_real_run_fetches_the_shards_that_the_simulated_one_fetches(bucket, tmp_path, monkeypatch):
    """Part of an epoch: shards beyond the last step are not fetched at any depth."""
    monkeypatch.setattr(measured, "STEP_S", 0.0)
    monkeypatch.setattr(measured, "WARM_STEPS", 1)
    manifest = write_shards(bucket, shards=9, samples_per_shard=8, frames=64)
    one_index = max(open_store(bucket).size(index_name(shard.name)) for shard in manifest.shards)
    for depth_bytes in (0, measured.DEEP_BYTES):
        config = replace(measured.CONFIG, url=bucket, workers=0, crop_frames=64, prefetch_bytes=depth_bytes)
        cached = replace(config, cache_dir=str(tmp_path / f"{depth_bytes}"))
        real = measured.measure(cached, manifest, steps=5)
        simulated = measured.predict(config, manifest, steps=5, latency_s=0.1, shard_s=0.1)
        assert 0 < simulated.fetches < 9
        # beside the shards, the index of each was fetched and no more
        assert 0 < real.bytes_read - simulated.fetched_bytes <= simulated.fetches * one_index


def test_an_imagined_manifest_is_one(tmp_path):
    """The manifest can be read back, and a start with it measured."""
    manifest = imagined_manifest(3, samples_per_shard=4, frames=10, shard_bytes=1000, hours=1.0)
    assert from_json(to_json(manifest)) == manifest
    start = measure_start(20_000.0)
    assert start.shards > 3_000
    assert 250 < start.manifest_bytes / start.shards < 300
