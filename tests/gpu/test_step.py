"""The training step on a device: of every variant the numbers of the CPU, by kernels that repeat them, flash attention.

On the CPU the reference takes crops one by one, so that both sides differ there too.
"""

import os
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from distributed.engine.engine import EngineConfig, settle_kernels
from distributed.engine.teacher import Teacher
from distributed.engine.teacher_shards import shard_blocks
from distributed.watch import diagnose as diagnose_module
from distributed.watch.diagnose import diagnose
from pupujepa.cost.cost import model_size
from pupujepa.model.model import PupuJEPA
from pupujepa.training.objective import ObjectiveConfig, TrainingStep
from tests.distributed.tiny_training import MODEL, fixed_crops
from tests.pupujepa.variants import VARIANTS, Variant

CPU = torch.device("cpu")


@pytest.fixture
def fixed_order():
    """Kernels that add in a fixed order; where there is none for an operation, torch raises."""
    settle_kernels(os.environ, EngineConfig(deterministic=True))
    yield
    settle_kernels(os.environ, EngineConfig())


def step_on(device, variant, *, dtype=None, recompute=False):
    step = variant.step(dtype, activation_checkpointing=recompute).to(device)
    step.teacher.to(device)
    return step


def learnt(step, batch):
    """Loss and gradients of a batch, on the CPU."""
    step.zero_grad()
    loss, _ = step(*(tensor.to(step.patch_embed.proj.weight.device) for tensor in batch))
    loss.backward()
    return {"loss": loss.detach().cpu()} | {name: p.grad.cpu() for name, p in step.named_parameters()}


def learnt_one_by_one(step, batch):
    crops = [learnt(step, [tensor[row : row + 1] for tensor in batch]) for row in range(len(batch[0]))]
    return {name: torch.stack([crop[name] for crop in crops]).mean(0) for name in crops[0]}


@pytest.mark.usefixtures("fixed_order")
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_what_it_learns_on_the_cpu(device, name):
    """Loss and all gradients in float32, twice to the same bits: no operation lacks a kernel of a fixed order."""
    variant = VARIANTS[name]
    batch = variant.batch()
    step = step_on(device, variant)
    once, again = learnt(step, batch), learnt(step, batch)
    for tensor, expected in zip(again.values(), once.values(), strict=True):
        assert torch.equal(tensor, expected)
    for (key, tensor), expected in zip(once.items(), learnt_one_by_one(step_on(CPU, variant), batch).values()):
        torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_recomputed_blocks_give_the_same_bits(device):
    """In bf16, whose autocast the recomputation must enter again."""
    released = VARIANTS["released"]
    kept, recomputed = (
        learnt(step_on(device, released, dtype=torch.bfloat16, recompute=again), released.batch())
        for again in (False, True)
    )
    for name, tensor in kept.items():
        torch.testing.assert_close(recomputed[name], tensor, rtol=1e-4, atol=1e-6)


class FlashCalls(TorchDispatchMode):
    """Counts calls of flash attention by its operation, forward and backward."""

    def __init__(self):
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if "scaled_dot_product_flash_attention" in name:
            self.backward += "backward" in name
            self.forward += "backward" not in name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_flash_attention_takes_the_shapes_of_every_size(device, size):
    """Nothing else is allowed: each block's attention is flash attention, forward and backward, bf16 on a GPU."""
    config = replace(model_size(size), crop_frames=32, depth=1, predictor_depth=2)
    variant = Variant(config)
    step = step_on(device, variant, dtype=torch.bfloat16 if device.type == "cuda" else None)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]), FlashCalls() as calls:
        learnt(step, variant.batch(2))
    assert (calls.forward, calls.backward) == (4, 3)


@pytest.mark.usefixtures("group")
def test_a_teacher_in_parts_gives_the_features_of_a_whole_one(device):
    """Its blocks are gathered while they run, by the device's own collectives, and follow the student alike."""
    variant = VARIANTS["released"]
    batch = [tensor.to(device) for tensor in variant.batch()]
    whole, cut = (step_on(device, variant) for _ in range(2))
    units = shard_blocks(cut.teacher.blocks, rank=0, world_size=1)
    for _ in range(2):
        expected, found = whole(*batch)[1], cut(*batch)[1]
        assert all(p.numel() == 0 for p in cut.teacher.blocks.parameters())
        torch.testing.assert_close(found["target_BMD"], expected["target_BMD"], rtol=0, atol=0)
        with torch.no_grad():
            for parameter, unit in zip(whole.teacher.blocks.parameters(), (p for u in units for p in u.items())):
                parameter.mul_(1.5)
                unit[1].values.mul_(1.5)


@pytest.mark.usefixtures("group")
def test_the_teacher_moves_as_on_the_cpu(device):
    """One move of the average, and what a row of metrics says about it."""
    moves = []
    for where in (device, CPU):
        step = step_on(where, VARIANTS["released"])
        with torch.no_grad():
            for parameter in step.student.parameters():
                parameter.add_(0.1)
        teacher = Teacher(step)
        moves.append((teacher.follow(0.9, measured=True)["teacher/moved"], teacher.moved(), teacher.state()))
    (moved, far, state), (expected_moved, expected_far, expected) = moves
    assert (moved, far) == pytest.approx((expected_moved, expected_far), rel=1e-5)
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor)


@pytest.mark.usefixtures("group")
def test_diagnostics_are_those_of_the_cpu(device, monkeypatch):
    """Ranks, variances, explained variances: decompositions and groupings by the device's own kernels.

    The CPU looks at other numbers of crops at a time.
    """
    rows = []
    for where, at_once in ((device, 2), (CPU, 5)):
        monkeypatch.setattr(diagnose_module, "CROPS_AT_ONCE", at_once)
        model = PupuJEPA(MODEL).to(where)
        step = TrainingStep(model, ObjectiveConfig(target_layers=2))
        rows.append(diagnose(step, model, crops=fixed_crops().to(where), teacher=Teacher(step)))
    assert rows[0] == pytest.approx(rows[1], rel=2e-3, abs=1e-4)
