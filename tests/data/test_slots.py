"""Batches cross processes in memory that is used again, and never while anybody still looks at it."""

import gc
import multiprocessing
import pickle
from multiprocessing.connection import Connection

import pytest
import torch
from torch import Tensor

from data.slots import SlotRing
from tests.data.test_stream import make_stream, rows_of, shard_set  # noqa: F401  (a fixture)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def in_slot(ring: SlotRing, value: float, worker: int = 0) -> Tensor:
    """A mel [2, 8] in a free slot."""
    slot_S = ring.lease(worker)
    assert slot_S is not None
    mel_BF = slot_S[:64].view(torch.float32).view(2, 8)
    return mel_BF.fill_(value)


def sent(ring: SlotRing, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What comes out at the other end."""
    packed = ring.pack(tensors, first="mel")
    assert packed is not None
    return pickle.loads(pickle.dumps(packed))


def test_tensors_arrive_as_they_were_without_a_copy_of_the_first():
    """Types, shapes and values are kept; the first tensor lies where it was made."""
    ring = SlotRing(1, slots=2, slot_bytes=4096)
    mel_BF = in_slot(ring, 3.5)
    others = {"context": torch.arange(6).view(2, 3), "none": torch.empty(2, 0, dtype=torch.int64)}
    found = sent(ring, {"context": others["context"], "mel": mel_BF, "none": others["none"]})
    assert found["mel"].data_ptr() == mel_BF.data_ptr() and torch.equal(found["mel"], torch.full((2, 8), 3.5))
    for name, tensor in others.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_what_finds_no_room_travels_by_itself():
    """A tensor larger than the rest of the slot arrives all the same, and one that lies in no slot is not packed."""
    ring = SlotRing(1, slots=2, slot_bytes=4096)
    large = torch.arange(2000)
    found = sent(ring, {"mel": in_slot(ring, 1.0), "large": large, "small": torch.arange(3)})
    assert torch.equal(found["large"], large) and torch.equal(found["small"], torch.arange(3))
    assert ring.pack({"mel": torch.zeros(2, 8)}, first="mel") is None


def test_a_slot_is_used_again_only_when_nothing_refers_to_it():
    """A view, an array over the tensor or a second tensor each keep the slot; the last that goes frees it."""
    ring = SlotRing(2, slots=1, slot_bytes=4096)
    found = sent(ring, {"mel": in_slot(ring, 1.0), "context": torch.arange(3)})
    kept = [found["mel"][1, 2:], found["mel"].numpy(), found["context"]]
    del found
    while kept:
        gc.collect()
        assert ring.lease(0) is None, f"the slot was given away while {len(kept)} views of it were in use"
        assert ring.lease(1) is not None, "another worker's slots have nothing to do with it"
        kept.pop()
    gc.collect()
    assert ring.lease(0) is not None


def test_a_lease_that_is_not_handed_over_is_free_again():
    """A stage that puts another array in the place of the crop costs no slot."""
    ring = SlotRing(1, slots=1, slot_bytes=4096)
    for _ in range(3):
        mel_BF = in_slot(ring, 1.0)
        del mel_BF


def test_tensors_outlive_the_ring():
    """The stream may be over when the last batch is looked at."""
    ring = SlotRing(1, slots=1, slot_bytes=4096)
    found = sent(ring, {"mel": in_slot(ring, 7.0)})
    del ring
    gc.collect()
    assert torch.equal(found["mel"], torch.full((2, 8), 7.0))


def _make_batches(ring: SlotRing, pipe: Connection) -> None:
    for number in range(20):
        slot_S = ring.lease(0)
        shared = slot_S is not None
        mel_BF = slot_S[:64].view(torch.float32).view(2, 8) if slot_S is not None else torch.empty(2, 8)
        pipe.send((shared, ring.pack({"mel": mel_BF.fill_(number)}, first="mel") if shared else number))
        pipe.recv()


def test_another_process_fills_slots_that_this_one_frees():
    """Over twenty batches from a real process two slots are enough, and each holds its own numbers when it is read."""
    context = multiprocessing.get_context("spawn")
    ring = SlotRing(1, slots=2, slot_bytes=4096)
    here, there = context.Pipe()
    process = context.Process(target=_make_batches, args=(ring, there))
    process.start()
    try:
        held: list[Tensor] = []
        for number in range(20):
            shared, tensors = here.recv()
            assert shared
            held = [*held[-1:], tensors["mel"]][-1:]
            del tensors
            assert torch.equal(held[0], torch.full((2, 8), float(number)))
            here.send("go on")
        process.join()
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


def test_batches_that_are_all_kept_stay_as_they_were(shard_set):  # noqa: F811
    """Whoever collects the batches of a stream with workers has what a stream without workers gives."""
    expected = [rows_of(batch) for batch in make_stream(shard_set)]
    kept = list(make_stream(shard_set, workers=2))
    assert [rows_of(batch) for batch in kept] == expected


def _in_new_memory(sample: dict) -> dict:
    return {**sample, "mel": sample["mel"].copy()} if sample["place"].row % 2 else sample


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stage_may_put_other_crops_in_their_place(shard_set, workers):  # noqa: F811
    """A stage that copies some rows changes nothing."""
    import webdataset

    expected = [rows_of(batch) for batch in make_stream(shard_set)]
    stream = make_stream(shard_set, workers=workers, stages=(webdataset.map(_in_new_memory),))
    assert [rows_of(batch) for batch in stream] == expected
