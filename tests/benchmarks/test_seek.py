"""The benchmark of resuming: its manifest has the given size, and its row measures a real resume."""

from benchmarks.seek import measure, synthetic_manifest
from data.shards.manifest import from_json, to_json


def test_the_synthetic_manifest_is_one():
    """The manifest has the given samples and shards, also after it is written and read."""
    manifest = synthetic_manifest(1003, 10)
    assert (manifest.samples, len(manifest.shards)) == (1003, 10)
    assert {shard.samples for shard in manifest.shards} == {100, 101}
    assert from_json(to_json(manifest)) == manifest


def test_a_rank_finds_its_part_of_a_step():
    """Rank 4 of 8 serves 8 of 64 lanes, 4 items of each."""
    found = measure(40_000, 100, ranks=8)
    assert found.items == 32
    assert found.manifest_bytes > 20_000 and found.recipe_bytes > 10_000
    assert found.total_s > 0
