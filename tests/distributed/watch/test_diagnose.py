"""Diagnostics: fixed crops, and numbers that tell a collapsed encoder from a healthy one."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from data.stream.corpora import read_corpora
from data.stream.stream import StreamConfig
from distributed.engine.gather import whole_model
from distributed.engine.teacher import Teacher
from distributed.watch import diagnose as diagnose_module
from distributed.watch.config import DiagnosticsConfig
from distributed.watch.diagnose import diagnose
from distributed.watch.fixed_crops import read_fixed_crops
from pupujepa.errors import UserError
from pupujepa.model.model import ModelConfig, PupuJEPA, encoder_rotation, visible_to
from pupujepa.training import diagnostics
from pupujepa.training.masks import MaskConfig
from pupujepa.training.objective import ObjectiveConfig, TrainingStep
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
    return read_fixed_crops(read_corpora(stream), seed=stream.seed, model=model, masks=masks, shape=shape)


def test_the_fixed_crops_are_always_the_same(stream):
    """Two reads give equal crops and masks; another seed gives others."""
    first, second, other = read(stream), read(stream), read(replace(stream, seed=1))
    for name in ("mel_BTF", "context_CK", "target_CM", "strategy_C"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.mel_BTF, other.mel_BTF)
    assert first.mel_BTF.shape == (18, 32, 128)
    assert first.crops_per_clip == 3


def test_the_fixed_crops_are_normalised_like_the_training(stream):
    """The model sees log-mel with the corpus's mean taken off and divided by its deviation."""
    plain = read(stream, model=replace(MODEL, mel_mean=0.0, mel_std=1.0)).mel_BTF
    torch.testing.assert_close(read(stream, model=replace(MODEL, mel_mean=-3.0, mel_std=2.0)).mel_BTF, (plain + 3) / 2)


def test_strategies_take_turns_and_only_those_in_use(stream):
    """Every strategy with a weight is looked at equally often, others not at all."""
    assert torch.bincount(read(stream).strategy_C, minlength=3).tolist() == [2, 2, 2]
    only_two = MaskConfig(random=0.5, block=0.0, time_frequency=0.5)
    assert torch.bincount(read(stream, masks=only_two).strategy_C, minlength=3).tolist() == [3, 0, 3]


def test_crops_of_a_clip_lie_side_by_side_where_they_fit(stream):
    """Three crops of 32 frames in samples of 100; the first of each clip is the one with a mask."""
    three, one_long = read(stream), read(stream, model=replace(MODEL, crop_frames=96), shape=(6, 1))
    assert torch.equal(three.mel_BTF.unflatten(0, (6, 3)).flatten(1, 2), one_long.mel_BTF)
    assert torch.equal(three.masked_crops, three.mel_BTF.unflatten(0, (6, 3))[:, 0])
    assert len(three.masked_crops) == len(three.context_CK) == len(three.target_CM)


def test_ten_crops_of_a_clip_overlap_where_they_must(stream):
    """LiDAR's ten, of samples that hold three: spread over the whole sample, each a shift of the one before."""
    fixed = read(stream, shape=(6, 10))
    crops_CQTF = fixed.mel_BTF.unflatten(0, (6, 10))
    apart = (100 - 32) // 9
    for number in range(9):
        assert torch.equal(crops_CQTF[:, number, apart:], crops_CQTF[:, number + 1, :-apart])


def test_a_small_set_gives_few_fixed_crops(stream):
    """Fewer samples than asked for, and crops that have an eighth of their own: no repeats, no silence for music."""
    fixed = read(stream, shape=(1000, 99))
    assert fixed.mel_BTF.shape[0] == 16 * (1 + 8 * (100 - 32) // 32)
    crops = fixed.mel_BTF.flatten(1)
    assert len(torch.unique(crops, dim=0)) == len(crops)
    as_long = read(stream, model=replace(MODEL, crop_frames=100), shape=(2, 10))
    assert as_long.crops_per_clip == 1


def training_step(seed=0):
    model = PupuJEPA(MODEL, seed=seed)
    return model, TrainingStep(model, ObjectiveConfig())


def test_a_healthy_encoder(stream):
    """Random weights spread features out: every number is there, finite and on the good side of its alarm."""
    model, step = training_step()
    row = diagnose(step, model, crops=read(stream), teacher=Teacher(step))
    assert all(name.startswith("diag/") and isinstance(value, float) for name, value in row.items())
    assert all(value == value for value in row.values()), "not a number"
    assert row["diag/std_teacher"] > 0.3
    assert row["diag/cosine_teacher"] < 0.9
    assert row["diag/effective_rank_teacher"] > 10
    assert row["diag/teacher_student_distance"] == row["diag/teacher_moved"] == 0
    assert {f"diag/effective_rank_band_{band}" for band in range(8)} <= row.keys()
    assert {f"diag/explained_variance_{n}" for n in ("random", "block", "time_frequency")} <= row.keys()
    assert {"diag/lidar", "diag/clip_variance_between", "diag/clip_variance_within"} <= row.keys()


def test_lidar_is_that_of_ten_whole_crops(stream):
    """The numbers are those of pupujepa/training/diagnostics.py on the teacher's features, crop by crop."""
    model, step = training_step()
    fixed = read(stream, shape=(6, 10))
    row = diagnose(step, model, crops=fixed, teacher=Teacher(step))
    with torch.no_grad():
        pooled = [model.encode(crop_TF[None], layers=[-1])[0].mean((0, 1)) for crop_TF in fixed.mel_BTF]
    pooled_CQD = torch.stack(pooled).unflatten(0, (6, 10))
    assert row["diag/lidar"] == pytest.approx(float(diagnostics.lidar(pooled_CQD)), rel=1e-3)
    between, within = diagnostics.between_within_variance(pooled_CQD)
    assert row["diag/clip_variance_between"] == pytest.approx(float(between), rel=1e-3)
    assert row["diag/clip_variance_within"] == pytest.approx(float(within), rel=1e-3)


def test_the_student_is_seen_where_it_is_trained(stream):
    """Its features are those of the context that the prediction was made from, so they need no pass of their own."""
    model, step = training_step()
    fixed = read(stream)
    row = diagnose(step, model, crops=fixed, teacher=Teacher(step))
    with torch.no_grad():
        rotation = encoder_rotation(MODEL, MODEL.grid_steps, fixed.mel_BTF.device)
        seen = visible_to(model.student, model.tokens(fixed.masked_crops), fixed.context_CK, rotation)
        tokens_nD = model.student(*seen).flatten(0, 1)
    assert row["diag/std_student"] == pytest.approx(float(diagnostics.normalised_std(tokens_nD)), rel=1e-4)
    assert row["diag/effective_rank_student"] == pytest.approx(float(diagnostics.effective_rank(tokens_nD)), rel=1e-4)


def test_lidar_may_be_left_out(stream):
    """With one crop of each clip nothing else is missing, and nothing else differs."""
    model, step = training_step()
    fixed, teacher = read(stream), Teacher(step)
    row = diagnose(step, model, crops=fixed, teacher=teacher)
    of_clips = {name: row.pop(f"diag/{name}") for name in ("lidar", "clip_variance_between", "clip_variance_within")}
    assert diagnose(step, model, crops=fixed, teacher=teacher, all_crops=False) == row
    assert all(of_clips.values())


def test_lidar_has_its_own_pace():
    """Every so many-th of the diagnostics, the first and the last of a run."""
    config = DiagnosticsConfig(every=100, lidar_every=3)
    looks = [*range(0, 1000, 100), 1000]
    assert [s for s in looks if config.takes_all_crops(s, total_steps=1000)] == [0, 300, 600, 900, 1000]
    assert all(DiagnosticsConfig(every=100).takes_all_crops(s, total_steps=1000) for s in looks)


def test_many_tokens_are_thinned_by_whole_time_steps(stream, monkeypatch):
    """Every second step of a crop, all bands of it; the mean of the crop is that of all its tokens."""
    model, step = training_step()
    fixed = read(stream)
    all_of_them = diagnose(step, model, crops=fixed, teacher=Teacher(step))
    monkeypatch.setattr(diagnose_module, "MAX_ROWS", 6 * MODEL.num_patches // 2)
    half = diagnose(step, model, crops=fixed, teacher=Teacher(step))
    with torch.no_grad():
        states_CND = model.encode(fixed.masked_crops, layers=[-1])[0].unflatten(1, (-1, MODEL.grid_bands))[:, ::2]
    kept = float(diagnostics.normalised_std(states_CND.flatten(0, 2)))
    assert half["diag/std_teacher"] == pytest.approx(kept, rel=1e-5)
    assert half["diag/lidar"] == all_of_them["diag/lidar"]


def test_a_collapsed_teacher_is_seen(stream):
    """A teacher that maps everything to one vector: no rank, no spread, one direction; the student is not blamed."""
    model, step = training_step()
    with torch.no_grad():
        model.teacher.norm.weight.zero_()
        model.teacher.norm.bias.fill_(1.0)
    row = diagnose(step, model, crops=read(stream), teacher=Teacher(step))
    assert row["diag/effective_rank_teacher"] < 1.01
    assert row["diag/std_teacher"] < 0.01
    assert row["diag/cosine_teacher"] > 0.99
    assert row["diag/effective_rank_student"] > 10


def test_diagnosing_changes_nothing(stream):
    """Weights, gradients and the global random state are as before."""
    model, step = training_step()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    diagnose(step, model, crops=read(stream), teacher=Teacher(step))
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
    save_file(teacher.state(), tmp_path / "teacher.safetensors")
    other_model, other_step = training_step(seed=1)
    Teacher(other_step).load(tmp_path / "teacher.safetensors")
    for name, tensor in model.teacher.state_dict().items():
        assert torch.equal(other_model.teacher.state_dict()[name], tensor)


def test_impossible_diagnostics_are_refused():
    """The variance between clips needs two of them."""
    with pytest.raises(UserError, match="clips=1 must be at least 2"):
        DiagnosticsConfig(clips=1)
