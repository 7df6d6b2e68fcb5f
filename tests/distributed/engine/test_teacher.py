"""The teacher of one process: it follows, says by how much, and one that stands still ends the run."""

import pytest
import torch

from distributed.engine import teacher as teacher_module
from distributed.engine.teacher import FrozenTeacherError, Teacher
from pupujepa.errors import UserError
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.training.ema import EmaConfig
from pupujepa.training.objective import ObjectiveConfig, TrainingStep, teacher_pairs

SMALL = ModelConfig(
    crop_frames=64, width=32, depth=2, heads=2, predictor_width=16, predictor_depth=1, predictor_heads=1
)


def training_step():
    return TrainingStep(PupuJEPA(SMALL), ObjectiveConfig())


def moved_student(step, by=0.1):
    with torch.no_grad():
        for parameter in step.student.parameters():
            parameter.add_(by)


def test_a_move_is_measured():
    """A student a tenth larger asks for (1 - momentum) / 10 of the teacher's weights, which is what a row then says."""
    step = training_step()
    teacher = Teacher(step)
    with torch.no_grad():
        for parameter in step.student.parameters():
            parameter.mul_(1.1)
    assert teacher.follow(0.99, measured=True) == {"teacher/moved": pytest.approx(0.001, rel=1e-3)}
    assert teacher.follow(0.99) == {}


def test_a_teacher_that_stands_still_ends_the_run(monkeypatch):
    """An average that is not written, as inside a gather without a modifier rank, is found at the first row."""
    step = training_step()
    teacher = Teacher(step)
    moved_student(step)
    monkeypatch.setattr(teacher_module, "update_ema", lambda *_: None)
    with pytest.raises(FrozenTeacherError, match=r"moved by 0 of its weights instead of 0\.0"):
        teacher.follow(0.99, measured=True)


def test_an_average_of_a_stale_student_ends_the_run(monkeypatch):
    """Nor may it follow a copy that the optimiser no longer writes to."""
    step = training_step()
    stale = [s.detach().clone() for _, _, s in teacher_pairs(step)]
    teacher = Teacher(step)
    moved_student(step)
    average = teacher_module.update_ema
    monkeypatch.setattr(teacher_module, "update_ema", lambda own, _, momentum: average(own, stale, momentum))
    with pytest.raises(FrozenTeacherError, match="is frozen"):
        teacher.follow(0.99, measured=True)


def test_a_move_too_small_for_float32_is_no_alarm():
    """In the first steps of a warm-up the student has hardly left the teacher."""
    step = training_step()
    teacher = Teacher(step)
    assert teacher.follow(0.99, measured=True) == {"teacher/moved": 0.0}
    moved_student(step, by=1e-6)
    assert teacher.follow(0.99999, measured=True)["teacher/moved"] < 1e-7


def test_momenta_that_never_move_it_are_refused():
    """One that reaches 1 at the end is a usual schedule; one that is 1 throughout trains against noise."""
    EmaConfig(start=0.996, end=1.0)
    with pytest.raises(UserError, match="keep the teacher at its first, random weights"):
        EmaConfig(start=1.0, end=1.0)


def test_the_teacher_uses_the_patch_embedding_of_the_student():
    """It has no patch embedding of its own: what the optimiser does to the student's is in the next targets at once."""
    step = training_step()
    teacher = Teacher(step)
    assert not any("patch_embed" in name or "proj." in name.split(".")[0] for name in teacher.state())
    mel_BTF = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    index_BN = torch.arange(SMALL.num_patches).repeat(2, 1)
    batch = (mel_BTF, index_BN[:, :64], index_BN[:, 64:])
    before = step(*batch)[1]["target_BMD"]
    with torch.no_grad():
        step.patch_embed.proj.weight.mul_(-1)
    teacher.follow(1.0)
    assert not torch.allclose(step(*batch)[1]["target_BMD"], before, atol=0.1)
