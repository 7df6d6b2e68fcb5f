"""Shared memory in which workers hand their batches over, used again and again.

A batch that crosses processes in fresh shared memory costs more than making it: the kernel has to find and clear every
page of it, 128 for a crop of 1,024 frames, which takes several times as long as decoding the crop. Here each worker
has a few slots. It makes a batch in a free one, tells the training process which, and may use the slot again when
nothing there refers to the batch any more. When all slots are in use (somebody keeps batches), a batch goes its usual
way through `torch.multiprocessing`, so a slot is never awaited and never overwritten.

The memory is a memfd: it needs no room in /dev/shm, of which containers often have 64 MiB.
"""

import math
import mmap
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary, finalize

import numpy as np
import torch
from torch import Tensor

# offset in the slot, dtype, shape
Place = tuple[int, torch.dtype, tuple[int, ...]]
_ALIGNED_BYTES = 64
_RINGS: WeakValueDictionary[str, "SlotRing"] = WeakValueDictionary()


@dataclass(frozen=True)
class Packed:
    """A dict of tensors, on its way to the process that made the ring; unpickling gives the tensors.

    Args:
        places: of those that lie in the slot; the others travel by themselves.
    """

    ring: str
    slot: int
    places: Mapping[str, Place]
    others: Mapping[str, Tensor]

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self.ring, self.slot, self.places, self.others)


class SlotRing:
    """Slots of equal size for the batches of each worker; pickled to the workers when they are started.

    Args:
        slots: of each worker.
        slot_bytes: room for the tensors of one batch.
    """

    def __init__(self, workers: int, *, slots: int, slot_bytes: int):
        self.key = uuid4().hex
        self.workers, self.slots = workers, slots
        self.slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        file = os.memfd_create("batches")
        finalize(self, os.close, file)
        self._file = file
        # the first pages say which slots are in use, one byte each
        self._head_bytes = -(-workers * slots // mmap.PAGESIZE) * mmap.PAGESIZE
        os.truncate(file, self._head_bytes + workers * slots * self.slot_bytes)
        self._map(file)
        _RINGS[self.key] = self

    def lease(self, worker: int) -> Tensor | None:
        """Returns a free slot of a worker, uint8 [slot_bytes], or None; it is free again when nothing refers to it."""
        for slot in range(worker * self.slots, (worker + 1) * self.slots):
            if not self._in_use[slot]:
                self._in_use[slot] = 1
                return self._held(slot)
        return None

    def pack(self, tensors: Mapping[str, Tensor], *, first: str) -> Packed | None:
        """Copies tensors into the slot in which the one named `first` begins, behind it, and gives the slot away.

        Tensors for which there is no room are left as they are. None: `first` lies in no slot.
        """
        slot = self._slot_of(tensors[first])
        if slot is None:
            return None
        room_S, end, places, others = torch.from_numpy(self._memory[slot]), 0, {}, {}
        for name in sorted(tensors, key=lambda name: name != first):
            tensor = tensors[name]
            start = -(-end // _ALIGNED_BYTES) * _ALIGNED_BYTES
            if start + tensor.nbytes > self.slot_bytes:
                others[name] = tensor
                continue
            end = start + tensor.nbytes
            if name != first:
                room_S[start:end].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            places[name] = (start, tensor.dtype, tuple(tensor.shape))
        self._leases.pop(slot).detach()
        return Packed(self.key, slot, places, others)

    def unpack(self, slot: int, places: Mapping[str, Place]) -> dict[str, Tensor]:
        """Returns the tensors; the slot is in use as long as anything refers to the memory of one of them."""
        room_S, tensors = self._held(slot), {}
        for name, (start, dtype, shape) in places.items():
            length = dtype.itemsize * math.prod(shape)
            tensors[name] = room_S[start : start + length].view(dtype).view(shape)
        return tensors

    def __getstate__(self) -> dict[str, Any]:
        plain = {name: vars(self)[name] for name in ("key", "workers", "slots", "slot_bytes", "_head_bytes")}
        return plain | {"file": reduction.DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        file = state.pop("file").detach()
        vars(self).update(state)
        self._map(file)
        os.close(file)

    def _map(self, file: int) -> None:
        whole = np.frombuffer(mmap.mmap(file, 0), dtype=np.uint8)
        self._in_use = whole[: self._head_bytes]
        self._memory = whole[self._head_bytes :].reshape(self.workers * self.slots, self.slot_bytes)
        self._leases: dict[int, weakref.finalize] = {}

    def _held(self, slot: int) -> Tensor:
        # the storage of a tensor made from an array owns the array, so this one ends with the last view of the tensor
        array_S = self._memory[slot]
        lease = finalize(array_S, self._in_use.__setitem__, slot, 0)
        lease.atexit = False
        self._leases[slot] = lease
        return torch.from_numpy(array_S)

    def _slot_of(self, tensor: Tensor) -> int | None:
        slot, offset = divmod(tensor.data_ptr() - self._memory.ctypes.data, self.slot_bytes)
        return slot if offset == 0 and slot in self._leases and tensor.is_contiguous() else None


def _unpacked(ring: str, slot: int, places: Mapping[str, Place], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _RINGS[ring].unpack(slot, places) | dict(others)
