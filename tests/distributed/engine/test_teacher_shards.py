"""Parts of a teacher: no entry is lost or held twice, and each lies beside the part of the student that it follows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from distributed.engine.teacher import Teacher
from distributed.engine.teacher_shards import ShardedBlock, full_numel
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.training.objective import ObjectiveConfig, TrainingStep, teacher_pairs

SMALL = ModelConfig(
    crop_frames=64, width=32, depth=3, heads=2, predictor_width=16, predictor_depth=1, predictor_heads=1
)
SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=5)


def block(shapes):
    count = 0
    module = nn.Module()
    for number, shape in enumerate(shapes):
        values = torch.arange(count, count + torch.Size(shape).numel(), dtype=torch.float32).view(shape)
        module.register_parameter(f"p{number}", nn.Parameter(values, requires_grad=False))
        count += values.numel()
    return module


@given(SHAPES, st.integers(2, 9))
def test_parts_put_together_are_the_tensor(shapes, world_size):
    """For any shapes and any number of ranks, tensors of fewer entries than ranks included."""
    wholes = [p.data.clone() for p in block(shapes).parameters()]
    by_rank = [ShardedBlock(block(shapes), rank=rank, world_size=world_size).parts for rank in range(world_size)]
    for whole, *parts in zip(wholes, *by_rank, strict=True):
        assert torch.equal(torch.cat([part.values for part in parts]), whole.flatten())
        assert all(torch.equal(part.of(whole), part.values) for part in parts)
        assert {part.numel for part in parts} == {whole.numel()}


@given(SHAPES, st.integers(2, 9))
def test_a_rank_keeps_its_share(shapes, world_size):
    """The parameters are empty, and what is kept is one part of each tensor, rounded up to a whole entry."""
    module = block(shapes)
    numels = [p.numel() for p in module.parameters()]
    unit = ShardedBlock(module, rank=0, world_size=world_size)
    assert all(p.numel() == 0 for p in module.parameters())
    assert [full_numel(p) for p in module.parameters()] == numels
    assert [len(part.values) for part in unit.parts] == [-(-n // world_size) for n in numels]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_any_world_reads_the_teacher_of_any_other(tmp_path, rank):
    """A whole teacher's file gives every rank of three its own part, and a teacher of one rank the whole again."""
    saved = PupuJEPA(SMALL, seed=1)
    save_file({name: t.data for name, t, _ in teacher_pairs(saved)}, tmp_path / "teacher.safetensors")
    step = TrainingStep(PupuJEPA(SMALL, seed=0), ObjectiveConfig())
    teacher = Teacher(step, rank=rank, world_size=3)
    teacher.load(tmp_path / "teacher.safetensors")
    whole = dict(saved.teacher.named_parameters())
    parts = {id(p): part for unit in teacher._shards for p, part in unit.items()}
    for name, parameter in step.teacher.named_parameters():
        part = parts.get(id(parameter))
        if name.startswith("blocks."):
            assert torch.equal(part.values, part.of(whole[name])), name
        else:
            assert torch.equal(parameter, whole[name]), name
    assert len(parts) == sum(name.startswith("blocks.") for name in whole)
    alone = Teacher(TrainingStep(PupuJEPA(SMALL, seed=2), ObjectiveConfig()))
    alone.load(tmp_path / "teacher.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in alone.state().items())


def test_a_state_with_holes_is_not_handed_out():
    """Who asks the module itself, past Teacher.state, would save empty tensors."""
    step = TrainingStep(PupuJEPA(SMALL), ObjectiveConfig())
    Teacher(step, rank=0, world_size=2)
    with pytest.raises(AssertionError, match=r"call Teacher\.state\(\)"):
        step.teacher.state_dict()
