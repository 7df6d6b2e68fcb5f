from dataclasses import asdict

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pupujepa.cost.cost import count_parameters, inference_flops, model_size, size_names, training_cost
from pupujepa.model.model import PupuJEPA
from pupujepa.training.masks import MaskConfig, num_context, num_targets
from pupujepa.training.objective import ObjectiveConfig, TrainingStep
from tests.pupujepa.models import SMALL, random_mel, random_model


@pytest.mark.parametrize(
    ("size", "tflop", "target_share", "predictor_share"),
    [("tiny", 0.69, 0.07, 0.90), ("base", 1.39, 0.34, 0.45), ("large", 3.24, 0.49, 0.19), ("giant", 10.06, 0.56, 0.06)],
)
def test_training_costs_what_is_known(size, tflop, target_share, predictor_share):
    """TFLOP per crop and the shares of teacher and predictor are those of the method's cost table.

    Which lets the predictor's last block go on with context tokens that nobody reads: 1 to 2 % of the predictor.
    """
    cost = training_cost(model_size(size), MaskConfig())
    assert cost.total / 1e12 == pytest.approx(tflop, abs=0.02)
    assert cost.teacher / cost.total == pytest.approx(target_share, abs=0.006)
    assert cost.predictor / cost.total == pytest.approx(predictor_share, abs=0.008)


@pytest.mark.parametrize("size", size_names())
def test_parameters_are_those_of_the_built_model(size):
    """Counted by formula and on the model, module by module; the trained ones are all but the teacher's."""
    with torch.device("meta"):
        model = PupuJEPA(model_size(size))
    counts = count_parameters(model_size(size))
    modules = {"patch_embed": model.patch_embed, "encoder": model.teacher, "predictor": model.predictor}
    assert asdict(counts) == {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    assert counts.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_arithmetic_agrees_with_torchs_counter(fraction):
    """Forward and backward operations, module by module, are exactly those torch counts."""
    masks = MaskConfig(target_fraction=fraction)
    model = random_model()
    step = TrainingStep(model, ObjectiveConfig())
    patches = torch.randperm(SMALL.num_patches, generator=torch.Generator().manual_seed(0))[None]
    context = patches[:, : num_context(masks, SMALL.num_patches)]
    target = patches[:, context.shape[1] : context.shape[1] + num_targets(masks, SMALL.num_patches)]
    # the plain backend: fused ones recompute scores in their backward pass, which is their business, not the model's
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss, _ = step(random_mel(1, 64, 128), context, target)
        loss.backward()
    assert counter.get_total_flops() == training_cost(SMALL, masks).total


def test_inference_agrees_with_torchs_counter():
    """Encoding one crop takes exactly the operations torch counts."""
    model = random_model()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.encode(random_mel(1, 64, 128))
    assert counter.get_total_flops() == inference_flops(SMALL)
