"""The controlled 1-D JEPA: the numbers of its page, its masks, and the functions of grids on a line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pupujepa.attention.maps import contexts_around, predictor_attention
from pupujepa.cost.cost import count_parameters, model_size, size_names
from pupujepa.embedding.encoder import Encoder
from pupujepa.errors import UserError
from pupujepa.model.architecture import ModelConfig
from pupujepa.randomness import generator
from pupujepa.training.diagnostics import effective_rank_per_band, explained_variance_per_band
from pupujepa.training.masks import STRATEGIES, MaskConfig, draw_mask
from pupujepa.training.objective import ObjectiveConfig, TrainingStep
from tests.pupujepa.models import SMALL, random_mel, random_model
from tests.pupujepa.twins import match, one_dimensional
from tests.pupujepa.variants import Variant

LINE = one_dimensional(SMALL)


@pytest.mark.parametrize("size", size_names())
def test_encoder_and_predictor_are_equal_parameter_by_parameter(size):
    """Only the patch embedding differs, by 448 weights per dimension."""
    config = model_size(size)
    grid, line = count_parameters(config), count_parameters(one_dimensional(config))
    assert (grid.encoder, grid.predictor) == (line.encoder, line.predictor)
    assert line.patch_embed - grid.patch_embed == 448 * config.width
    assert one_dimensional(config).grid_steps == config.grid_steps


def test_the_page_tells_the_true_numbers():
    """Parameters and factors in docs/control.md equal the counts and the results of `match`."""
    page = (Path(__file__).parents[2] / "docs" / "control.md").read_text()
    for size in ("tiny", "large"):
        config = model_size(size)
        twin, fine = match(config), match(config, patch_frames=1)
        assert (twin.tokens_per_crop, fine.tokens_per_crop) == (8, 2)
        assert f"`train.steps` times {twin.flops_per_crop:.2f}" in page
        for number in (twin.flops_per_crop, twin.flops_per_crop / 8):
            assert f"{number:.1f}" in page
        assert f"{fine.flops_per_crop:.2f}" in page
        for counts in (count_parameters(config), count_parameters(twin.one_dimensional)):
            assert all(f"{n:,}" in page for n in (counts.patch_embed, counts.encoder, counts.predictor))


def test_what_is_matched_follows_masks_and_objective():
    """Full-grid targets and another mask ratio change the factor, which is the quotient of both costs."""
    config = model_size("tiny")
    usual = match(config).flops_per_crop
    assert match(config, MaskConfig(ratio=0.5)).flops_per_crop != usual
    assert match(config, objective=ObjectiveConfig(target="full_grid")).flops_per_crop > usual
    with pytest.raises(UserError, match="structure=frames already"):
        match(one_dimensional(config))


@pytest.mark.parametrize("strategy", range(len(STRATEGIES)))
@pytest.mark.parametrize("balanced", [False, True])
def test_the_masking_family_works_on_a_line(strategy, balanced):
    """On 256 steps and one band, all strategies show 51 and predict 205; shapes hide longer stretches."""
    config = MaskConfig(balanced=balanced)
    runs = []
    for seed in range(200):
        mask = draw_mask(generator(seed), config, steps=256, bands=1, progress=1.0, strategy=strategy)
        assert (len(mask.context), len(mask.target)) == (51, 205)
        assert not np.intersect1d(mask.context, mask.target).size
        assert mask.target.max() < 256
        runs.append(205 / (1 + np.count_nonzero(np.diff(mask.target) > 1)))
    # mean length of a hidden stretch: 1 / 0.2 at random
    mean = np.mean(runs)
    assert 4.5 < mean < 5.5 if STRATEGIES[strategy] == "random" else mean > 5.5


def test_a_token_is_a_time_step_with_all_bands():
    """A change at any band of one step changes that step's token and no other."""
    model = random_model(LINE)
    mel = random_mel(1, 64, 128)
    before = model.tokens(mel)
    for band in (0, 77, 127):
        changed = mel.clone()
        changed[0, 4 * 5 + 2, band] += 1
        assert (model.tokens(changed) != before).any(-1)[0].nonzero().flatten().tolist() == [5]


def test_the_encoder_reads_it_out():
    """Audio of any length: `frames` is D wide at 25 Hz, `mean` D, a region has one block along frequency."""
    encoder = Encoder(random_model(LINE))
    audio = np.random.default_rng(0).normal(0, 0.1, 3 * 24_000).astype(np.float32)
    frames = encoder.encode(audio, 24_000)
    assert frames.values.shape == (75, 32)
    assert np.diff(frames.times_s) == pytest.approx(0.04)
    assert encoder.encode(audio, 24_000, readout="mean").values.shape == (32,)
    assert encoder.encode(audio, 24_000, readout=("region", 1, 3)).values.shape == (96,)
    with pytest.raises(UserError, match="1 to 1 blocks along frequency"):
        encoder.encode(audio, 24_000, readout=("region", 2, 3))


def test_attention_is_drawn_from_a_span():
    """A region is a span of time; its attention is a row per head over context and targets, on a grid [steps, 1]."""
    model = random_model(LINE)
    region = np.zeros((16, 1), bool)
    region[4:7] = True
    mask = next(contexts_around(region, ratio=0.8, seed=0))
    attention = predictor_attention(model, random_mel(64, 128), mask, region=region)
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, 2))
    assert attention.shape == (2, 2, 16, 1)
    assert attention.isfinite().all()


@pytest.mark.parametrize("code", ["rotary", "learned", "sincos", "none"])
@pytest.mark.parametrize("config", [SMALL, LINE], ids=["2d", "frames"])
def test_attention_is_what_the_predictor_attends_to(config, code):
    """The map and the prediction share a sequence: hiding the most attended patch changes the prediction most."""
    model = random_model(replace(config, position_code=code))
    region = np.zeros((config.grid_steps, config.grid_bands), bool)
    region[2] = True
    mask = next(contexts_around(region, ratio=0.8, seed=1))
    grid = predictor_attention(model, random_mel(64, 128), mask, region=region)
    rows = grid.flatten(2)[..., np.concatenate([mask.context, mask.target])]
    seen = []
    hooks = [
        block.attn.register_forward_hook(lambda _, args, out: seen.append((args, out)))
        for block in model.predictor.blocks
    ]
    context, target = (torch.from_numpy(part)[None] for part in (mask.context, mask.target))
    TrainingStep(model, ObjectiveConfig())(random_mel(1, 64, 128), context, target)
    for hook in hooks:
        hook.remove()
    where = len(mask.context) + np.searchsorted(mask.target, np.flatnonzero(region))
    for layer, (block, (args, out)) in enumerate(zip(model.predictor.blocks, seen, strict=True)):
        _, _, value = block.attn.project(*args[:2])
        mixed = (rows[layer][:, None] @ value[0])[:, 0].flatten()  # [H, d] of the region's mean query row
        expected = out[0, where - (len(mask.context) + len(mask.target) - out.shape[1])].mean(0)
        torch.testing.assert_close(block.attn.proj(mixed), expected, atol=1e-5, rtol=1e-4)


def test_diagnostics_per_band_have_one_band():
    """Rank and explained variance of the only band are those of all tokens."""
    variant = Variant(LINE)
    mel, context, target = variant.batch(4)
    step = variant.step()
    _, aux = step(mel, context, target)
    per_band = explained_variance_per_band(aux["prediction_BMD"], aux["target_BMD"], target, bands=1)
    assert per_band.shape == (1,)
    assert per_band.isfinite().all()
    with torch.no_grad():
        states = random_model(LINE).encode(mel, layers=[-1])[0]
    assert effective_rank_per_band(states, 1).shape == (1,)


def test_a_twin_of_a_twin_of_other_frames():
    """Finer tokens that do not tile the crop are an error."""
    assert one_dimensional(ModelConfig(), patch_frames=1).num_patches == 1024
    with pytest.raises(UserError, match="crop_frames=1024 cannot be cut into patches of 3"):
        one_dimensional(ModelConfig(), patch_frames=3)
