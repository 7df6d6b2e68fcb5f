"""Memory: by ZeRO stage, at the peak of a step, and the activations that autograd keeps."""

from dataclasses import replace

import pytest
import torch

from pupujepa.cost.cost import ParameterCounts, count_parameters, model_size
from pupujepa.cost.memory import ZERO_STAGES, StepConfig, activations, memory_per_rank, peak_memory
from pupujepa.model.model import PupuJEPA
from pupujepa.training.masks import MaskConfig, num_context, num_targets
from pupujepa.training.objective import ObjectiveConfig, TrainingStep

COUNTS = ParameterCounts(patch_embed=100, encoder=8000, predictor=1900)  # 10,000 trained
DEMO = StepConfig(model_size("demo"), MaskConfig(), ObjectiveConfig(), torch.bfloat16, crops=8, ranks=4)
TRAINED = count_parameters(DEMO.model).trained


def test_each_stage_shards_more():
    """From stage 1 on the optimiser's share falls with the ranks, from 2 the gradients', at 3 the parameters'."""
    memory = [memory_per_rank(COUNTS, zero_stage=s, ranks=4, activation_bytes=7) for s in ZERO_STAGES]
    assert [m.optimizer for m in memory] == [80_000] + [30_000] * 3
    assert [m.gradients for m in memory] == [40_000] * 2 + [10_000] * 2
    assert [m.parameters for m in memory] == [40_000] * 3 + [10_000]
    assert {m.teacher for m in memory} == {32_000}
    assert {m.activations for m in memory} == {7}
    assert memory[0].total == 40_000 + 40_000 + 80_000 + 32_000 + 7


@pytest.mark.parametrize("ranks", [3, 7])
def test_the_rank_that_holds_most_is_counted(ranks):
    """Shares of parameters that the number of ranks does not divide are rounded up."""
    memory = memory_per_rank(COUNTS, zero_stage=3, ranks=ranks, activation_bytes=0)
    assert ranks * memory.parameters >= 40_000 > ranks * (memory.parameters - 4)


@pytest.mark.parametrize(
    "changes", [{}, {"mlp": "gelu"}, {"structure": "frames", "patch_bands": 0, "crop_frames": 512}]
)
def test_the_bytes_kept_are_those_of_autograd(changes):
    """The activations of a real forward pass are within 5 % of the formula."""
    step = replace(DEMO, model=replace(DEMO.model, depth=5, **changes), autocast_dtype=None, crops=3)
    patches, kept = step.model.num_patches, {}
    built = TrainingStep(PupuJEPA(step.model), step.objective)
    own = {p.untyped_storage().data_ptr() for p in built.parameters()}

    def keep(tensor):
        # holds the tensor, so that no storage's address is used again
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        index = torch.arange(patches).repeat(step.crops, 1)
        visible = num_context(step.masks, patches)
        target = index[:, visible : visible + num_targets(step.masks, patches)]
        loss, _ = built(torch.randn(step.crops, step.model.crop_frames, 128), index[:, :visible], target)
    real = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)
    assert activations(step)["kept"] == pytest.approx(real, rel=0.05)
    assert loss.isfinite()


def test_recomputing_trades_activations():
    """Recomputed blocks keep a fraction of the activations, and the other parts do not change."""
    kept, recomputed = (peak_memory(replace(DEMO, activation_checkpointing=on))[1] for on in (False, True))
    assert recomputed.activations < 0.6 * kept.activations
    assert (recomputed.optimizer, recomputed.teacher) == (kept.optimizer, kept.teacher)


@pytest.mark.parametrize(("stage", "on_host", "buffers"), [(1, False, 0), (1, True, 800_000), (2, False, 800_000)])
def test_the_bucket_is_held_while_gradients_come(stage, on_host, buffers):
    """At stage 2, and at stage 1 with an optimiser on the host, the bucket adds to the backward pass."""
    tiny = StepConfig(model_size("tiny"), MaskConfig(), ObjectiveConfig(), torch.bfloat16, bucket=200_000, ranks=4)
    moment, memory = peak_memory(replace(tiny, zero_stage=stage, offload_optimizer=on_host, crops=16))
    assert moment in ("forward", "backward")
    assert memory.buffers == buffers


def test_stage_3_holds_its_bucket_from_the_start():
    """The bucket exists in the forward pass too; no bucket is larger than the model."""
    for bucket, buffers in ((200_000, 800_000), (500_000_000, 4 * TRAINED)):
        moment, memory = peak_memory(replace(DEMO, zero_stage=3, ranks=1, crops=64, bucket=bucket))
        assert (moment, memory.buffers) == ("forward", buffers)


def test_stage_3_gathers_what_the_ranks_share():
    """Several ranks hold the whole weights besides their shards, and a flat copy; a single rank gathers nothing."""
    alone, several = (peak_memory(replace(DEMO, zero_stage=3, ranks=ranks))[1] for ranks in (1, 4))
    assert alone.buffers == 0
    assert several.buffers == 2 * 4 * TRAINED
    parts = peak_memory(replace(DEMO, zero_stage=3, shard_teacher=True))[1]
    assert parts.teacher == -(-several.teacher // 4)
    assert parts.buffers == several.buffers + 2 * several.teacher // DEMO.model.depth


def test_accumulated_gradients_are_there_from_the_start():
    """A second micro-batch adds to the gradients of the first: whole ones below stage 2, a shard from stage 2 on."""
    for stage, expected in ((0, 4 * TRAINED), (1, 4 * TRAINED), (2, TRAINED), (3, TRAINED)):
        moment, memory = peak_memory(replace(DEMO, zero_stage=stage, accumulates=True, crops=64))
        assert (moment, memory.gradients) == ("forward", expected)


def test_an_optimiser_on_the_host_is_not_on_the_device():
    """The device holds no optimiser states, and no temporaries of the update."""
    huge = StepConfig(
        model_size("huge"), MaskConfig(), ObjectiveConfig(), torch.bfloat16, activation_checkpointing=True
    )
    here, offloaded = (peak_memory(replace(huge, ranks=8, offload_optimizer=on)) for on in (False, True))
    assert here[0] == "update"
    assert offloaded[1].optimizer == 0
    assert offloaded[1].total < here[1].total - here[1].optimizer
