"""Diagnostics: a fixed probe set, and numbers that tell a collapsed encoder from a healthy one."""

from dataclasses import replace

import pytest
import torch

from data.corpora import read_corpora
from data.stream import StreamConfig
from distributed.diagnose import DiagnosticsConfig, diagnose, whole_model
from distributed.probe_set import read_probe_set
from distributed.teacher import Teacher
from pupujepa.errors import UserError
from pupujepa.masks import MaskConfig
from pupujepa.model import ModelConfig, PupuJEPA
from pupujepa.objective import ObjectiveConfig, TrainingStep
from tests.data.shardsets import build_shard_set

MODEL = ModelConfig(
    crop_frames=32, width=32, depth=2, heads=2, predictor_width=16, predictor_depth=1, predictor_heads=1
)
MASKS = MaskConfig(target_fraction=0.5)


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("shards"))
    build_shard_set(url, (8, 8), num_frames=lambda number: 100)
    return StreamConfig(url=url, crop_frames=32)


def read(stream, *, masks=MASKS, model=MODEL, shape=(6, 3)):
    return read_probe_set(read_corpora(stream), seed=stream.seed, model=model, masks=masks, shape=shape)


def test_the_probe_set_is_always_the_same(stream):
    """Two reads give equal crops and masks; another seed gives others."""
    first, second, other = read(stream), read(stream), read(replace(stream, seed=1))
    for name in ("mel_BTF", "context_BK", "target_BM", "strategy_B"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.mel_BTF, other.mel_BTF)
    assert first.mel_BTF.shape == (18, 32, 128)
    assert first.crops_per_clip == 3


def test_the_probe_set_is_normalised_like_the_training(stream):
    """The model sees log-mel with the corpus's mean taken off and divided by its deviation."""
    plain = read(stream, model=replace(MODEL, mel_mean=0.0, mel_std=1.0)).mel_BTF
    torch.testing.assert_close(read(stream, model=replace(MODEL, mel_mean=-3.0, mel_std=2.0)).mel_BTF, (plain + 3) / 2)


def test_strategies_take_turns_and_only_those_in_use(stream):
    """Every strategy with a weight is looked at equally often, others not at all."""
    assert torch.bincount(read(stream).strategy_B, minlength=3).tolist() == [6, 6, 6]
    only_two = MaskConfig(random=0.5, block=0.0, time_frequency=0.5)
    assert torch.bincount(read(stream, masks=only_two).strategy_B, minlength=3).tolist() == [9, 0, 9]


def test_a_small_set_gives_a_small_probe_set(stream):
    """Fewer samples or shorter ones than asked for: no repeats, no silence in place of music."""
    probes = read(stream, shape=(1000, 9))
    assert probes.mel_BTF.shape[0] == 16 * 3
    crops = probes.mel_BTF.flatten(1)
    assert len(torch.unique(crops, dim=0)) == len(crops)


def training_step(seed=0):
    model = PupuJEPA(MODEL, seed=seed)
    return model, TrainingStep(model, ObjectiveConfig())


def test_a_healthy_encoder(stream):
    """Random weights spread features out: every number is there, finite and on the good side of its alarm."""
    model, step = training_step()
    row = diagnose(step, model, probes=read(stream), teacher=Teacher(step))
    assert all(name.startswith("diag/") and isinstance(value, float) for name, value in row.items())
    assert all(value == value for value in row.values()), "not a number"
    assert row["diag/std_teacher"] > 0.3
    assert row["diag/cosine_teacher"] < 0.9
    assert row["diag/effective_rank_teacher"] > 10
    assert row["diag/teacher_student_distance"] == row["diag/teacher_moved"] == 0
    assert {f"diag/effective_rank_band_{band}" for band in range(8)} <= row.keys()
    assert {f"diag/explained_variance_{n}" for n in ("random", "block", "time_frequency")} <= row.keys()
    assert {"diag/lidar", "diag/clip_variance_between", "diag/clip_variance_within"} <= row.keys()


def test_a_collapsed_teacher_is_seen(stream):
    """A teacher that maps everything to one vector: no rank, no spread, one direction; the student is not blamed."""
    model, step = training_step()
    with torch.no_grad():
        model.teacher.norm.weight.zero_()
        model.teacher.norm.bias.fill_(1.0)
    row = diagnose(step, model, probes=read(stream), teacher=Teacher(step))
    assert row["diag/effective_rank_teacher"] < 1.01
    assert row["diag/std_teacher"] < 0.01
    assert row["diag/cosine_teacher"] > 0.99
    assert row["diag/effective_rank_student"] > 10


def test_diagnosing_changes_nothing(stream):
    """Weights, gradients and the global random state are as before."""
    model, step = training_step()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    diagnose(step, model, probes=read(stream), teacher=Teacher(step))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_whole_model_is_a_copy():
    """The copy has every released key, equal values, and storage of its own."""
    model, step = training_step()
    copy = whole_model(step, model)
    assert copy.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in copy.state_dict().items())
    with torch.no_grad():
        model.student.norm.weight.zero_()
    assert copy.student.norm.weight.sum() == MODEL.width


def test_the_teacher_follows_and_says_how_far(tmp_path):
    """Momentum 1 does not move it, 0 makes it the student; it survives a round trip through its file."""
    model, step = training_step()
    teacher = Teacher(step)
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(0.1)
    teacher.follow(1.0)
    assert teacher.moved() == 0
    assert teacher.distance_to_student() > 0.1
    teacher.follow(0.0)
    assert teacher.moved() > 0.1
    assert teacher.distance_to_student() < 1e-6
    teacher.save(tmp_path / "teacher.safetensors")
    other_model, other_step = training_step(seed=1)
    Teacher(other_step).load(tmp_path / "teacher.safetensors")
    for name, tensor in model.teacher.state_dict().items():
        assert torch.equal(other_model.teacher.state_dict()[name], tensor)


def test_impossible_diagnostics_are_refused():
    """The variance between clips needs two of them."""
    with pytest.raises(UserError, match="clips=1 must be at least 2"):
        DiagnosticsConfig(clips=1)
