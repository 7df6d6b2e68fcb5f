"""Recomputing blocks in the backward pass gives the same bits with a fraction of the memory."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pupujepa.model.model import PupuJEPA
from pupujepa.training.objective import ObjectiveConfig, TrainingStep
from tests.pupujepa.models import SMALL

DEEP = replace(SMALL, depth=8, predictor_depth=4)


class LiveBytes(TorchDispatchMode):
    """Counter of the bytes of every storage, from the operation that makes it to its last reference.

    Unlike an allocator or the process's size, it does not depend on the machine.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _see(self, storage):
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, address, size):
        self._seen.discard(address)
        self.live -= size


def forward_and_backward(dtype, *, recompute):
    step = TrainingStep(PupuJEPA(DEEP), ObjectiveConfig(), dtype, activation_checkpointing=recompute)
    for parameter in step.parameters():
        parameter.grad = torch.zeros_like(parameter)
    crops, patches = 8, DEEP.num_patches
    index_BN = torch.arange(patches).repeat(crops, 1)
    mel_BTF = torch.randn(crops, DEEP.crop_frames, DEEP.mel_bands, generator=torch.Generator().manual_seed(0))
    with LiveBytes() as counter:
        loss, _ = step(mel_BTF, index_BN[:, : patches // 4], index_BN[:, patches // 4 :])
        loss.backward()
    return counter.peak, [loss.detach(), *(p.grad for p in step.parameters())]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_less_memory_and_the_same_bits(dtype):
    """The peak over forward and backward pass is below half, and loss and all gradients are equal bit for bit."""
    peak, numbers = forward_and_backward(dtype, recompute=False)
    recomputed_peak, recomputed = forward_and_backward(dtype, recompute=True)
    assert recomputed_peak < 0.5 * peak
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(recomputed, numbers, strict=True))
