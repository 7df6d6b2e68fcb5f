import os
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.store.store import open_store
from distributed.marble.datasets.corpus import Slice
from distributed.marble.features.features import MAX_PARTS, FeaturePlan, gather_features, plan_features
from distributed.marble.features.store import PartStore
from distributed.marble.tasks.tasks import Clips
from pupujepa.errors import UserError

CLIPS = Clips(30.0, None)
JAMENDO = 435_648


def plan_of(slices: int) -> FeaturePlan:
    return plan_features(CLIPS, [Slice(f"t{i // 8:06d}", i % 8) for i in range(slices)], with_frames=[], frame_layers=0)


def fill(store: PartStore, plan: FeaturePlan) -> None:
    """Writes features that identify their slice: its position in the plan."""
    for number in range(plan.num_parts):
        start = number * plan.slices_per_part
        values = torch.arange(start, start + len(plan.part(number)), dtype=torch.float32)
        store.save(number, {"pooled": values[:, None, None].expand(-1, 2, 3).contiguous()}, plan.part(number))


def places(plan: FeaturePlan, store: PartStore, slices: list[Slice]) -> list[float]:
    return gather_features(store, plan).read(slices, "pooled")[0, :, 0, 0].tolist()


def test_an_object_store_gives_what_a_folder_gives(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Parts are uploaded, listed, and read back by (uid, slice) in any order, through copies on this disk."""
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    plan = plan_of(70)
    remote, local = PartStore(bucket, "key"), PartStore(tmp_path / "cache", "key")
    for store in (remote, local):
        assert store.numbers() == set()
        store.describe({"encoder": "digest"})
        fill(store, plan)
        assert store.numbers() == {0, 1, 2}
    asked = [plan.slices[i] for i in (69, 0, 33, 33, 31)]
    assert places(plan, remote, asked) == places(plan, local, asked) == [69, 0, 33, 33, 31]
    assert len(list((tmp_path / "copies").rglob("part-*"))) + len(list((tmp_path / "copies").rglob("*-part-*"))) == 3
    assert b"digest" in open_store(bucket).read("key/key.json")


def test_a_copy_of_an_object_that_was_replaced_is_not_used(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A node that kept a copy of an earlier object of the same name fetches the new one."""
    plan = plan_of(8)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = PartStore(bucket, "key")
    fill(store, plan)
    assert places(plan, store, [plan.slices[3]]) == [3]
    store.save(0, {"pooled": torch.full((8, 2, 3), 9.0)}, plan.slices)
    again = PartStore(bucket, "key")
    assert places(plan, again, [plan.slices[3]]) == [9]


def test_the_last_process_of_a_node_removes_the_copies(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They stay while any store uses them, in a private folder; those of a killed process go with the next store."""
    plan = plan_of(8)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = tmp_path / f"pupujepa-features-{os.getuid()}"
    stores = [PartStore(bucket, "key") for _ in range(2)]
    fill(stores[0], plan)
    for store in stores:
        assert places(plan, store, [plan.slices[3]]) == [3]
    del store
    (root / "left by a killed process").mkdir()
    stores.pop()
    assert [path.name for path in root.iterdir()] == ["key"] and len([*(root / "key").iterdir()]) == 1
    stores.pop()
    assert not [*root.iterdir()]
    root.chmod(0o777)
    with pytest.raises(UserError, match="open to others, who could change its files"):
        places(plan, PartStore(bucket, "key"), [plan.slices[3]])


def test_a_part_that_was_damaged_later_is_named(tmp_path: Path):
    plan = plan_of(8)
    store = PartStore(tmp_path, "key")
    fill(store, plan)
    path = tmp_path / "key" / "part-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"part-00000.safetensors cannot be read .*delete it and run again"):
        places(plan, store, [plan.slices[0]])


def test_what_a_rank_holds_to_find_all_of_jamendo_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Plan and index take below 450 bytes a slice, 200 MB for 435,648 slices, in at most 4,096 parts.

    The parts are named and not written; `python -m benchmarks feature_store` goes through all of them.
    """
    tracemalloc.start()
    plan = plan_of(JAMENDO // 50)
    store = PartStore(tmp_path, "key")
    monkeypatch.setattr(store, "numbers", lambda: set(range(plan.num_parts)))
    features = gather_features(store, plan)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert features.place[plan.slices[-1]] == len(plan.slices) - 1
    assert held * 50 < 200e6
    assert replace(plan, slices=plan.slices[:1] * JAMENDO).num_parts <= MAX_PARTS


def test_a_part_that_cannot_be_read_now_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Missing rights say nothing about the content: neither the check nor the reader takes the part for damaged."""
    plan, store = plan_of(40), PartStore(tmp_path, "key")
    fill(store, plan)
    path = tmp_path / "key" / "part-00000.safetensors"
    open_file = Path.open

    def fail(self: Path, *args, **kwargs):
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return open_file(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        for look in (store.is_whole, store.path):
            with pytest.raises(UserError, match=r"part-00000\.safetensors cannot be read now \(Permission denied"):
                look(0, plan.part(0))
    assert store.is_whole(0, plan.part(0))
