"""Tracing: bytes are those a real pass keeps, operations those that arithmetic gives, at every size."""

from dataclasses import replace

import pytest
import torch

from pupujepa.cost import training_cost
from pupujepa.masks import MaskConfig, num_context, num_targets
from pupujepa.model import PupuJEPA
from pupujepa.objective import ObjectiveConfig, TrainingStep
from pupujepa.sizes import model_size, size_names
from pupujepa.tracing import StepConfig, _LiveBytes, _loss, counted_flops, saved_bytes, step_peaks
from tests.pupujepa.models import SMALL

DEMO = StepConfig(model_size("demo"), MaskConfig(), ObjectiveConfig(), torch.bfloat16)


def test_bytes_are_what_autograd_keeps():
    """The traced bytes of a deep model equal those that a real forward pass keeps."""
    config = replace(DEMO, model=replace(DEMO.model, depth=5), autocast_dtype=None)
    patches, crops = config.model.num_patches, 3
    kept = {}
    step = TrainingStep(PupuJEPA(config.model), config.objective)
    own = {p.untyped_storage().data_ptr() for p in step.parameters()}

    def keep(tensor):
        # holds the tensor, so that no storage's address is used again
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        index = torch.arange(patches).repeat(crops, 1)
        visible = num_context(config.masks, patches)
        target = index[:, visible : visible + num_targets(config.masks, patches)]
        loss, _ = step(torch.randn(crops, config.model.crop_frames, 128), index[:, :visible], target)
    real = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)
    traced = saved_bytes(config)
    assert traced.constant + crops * traced.per_crop == pytest.approx(real, rel=0.02)
    assert loss.isfinite()


def test_checkpointing_saves_activations():
    """Recomputing blocks keeps a fraction of what the backward pass needs otherwise."""
    recomputed = replace(DEMO, activation_checkpointing=True)
    assert saved_bytes(recomputed).per_crop < 0.4 * saved_bytes(DEMO).per_crop


@pytest.mark.parametrize("size", size_names())
def test_torch_counts_what_arithmetic_gives(size):
    """At every size, forward and backward of one crop take exactly the operations that cost.py computes.

    Blocks are alike, so encoder and predictor are cut to the first ones of different number.
    """
    model = replace(model_size(size), depth=3, predictor_depth=2)
    config = StepConfig(model, MaskConfig(), ObjectiveConfig())
    assert counted_flops(config) == training_cost(config.model, config.masks, config.objective).total


def test_tracing_allocates_nothing():
    """A model far beyond this machine's memory is traced all the same."""
    huge = replace(SMALL, width=65_536, heads=1024, depth=96, predictor_width=4096, predictor_heads=64)
    assert saved_bytes(StepConfig(huge, MaskConfig(), ObjectiveConfig())).per_crop > 2**30


@pytest.mark.parametrize("recomputed", [False, True])
def test_peaks_hold_what_a_real_step_holds(recomputed):
    """The most bytes alive in forward and in backward are those of a real step in float32, counted the same way."""
    config = replace(DEMO, autocast_dtype=None, activation_checkpointing=recomputed)
    traced = step_peaks(config, crops=3)
    step = TrainingStep(PupuJEPA(config.model), config.objective, activation_checkpointing=recomputed)
    live = _LiveBytes({p.untyped_storage()._cdata for p in (*step.parameters(), *step.teacher.parameters())})
    peaks = []

    def take(parameter):
        peaks.append(live.peak_since_last())
        parameter.grad = None

    for parameter in step.parameters():
        parameter.register_post_accumulate_grad_hook(take)
    with live:
        loss = _loss(step, config.masks, crops=3)
        forward = live.peak_since_last()
        loss.backward()
    assert traced.forward == pytest.approx(forward, rel=0.02)
    assert max(alive for alive, _ in traced.backward) == pytest.approx(max(peaks), rel=0.02)
    assert traced.backward[-1][1] == sum(p.numel() for p in step.parameters())
