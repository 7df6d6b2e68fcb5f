from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional

from pupujepa.errors import UserError
from pupujepa.model.blocks import Transformer
from pupujepa.model.model import PupuJEPA, encoder_rotation, gather_tokens, visible_to
from pupujepa.randomness import generator
from pupujepa.training.ema import update_ema
from pupujepa.training.masks import MaskConfig, draw_mask
from pupujepa.training.objective import (
    LOSSES,
    ObjectiveConfig,
    TrainingStep,
    standardise,
    teacher_pairs,
    token_losses,
    variance_hinge,
)
from tests.pupujepa.models import SMALL, random_mel, random_model
from tests.pupujepa.reference_model import ReferenceModel, blocks, patch_tokens


def batch(size: int = 3, *, fraction: float = 1.0, seed: int = 0):
    """Returns a spectrogram batch with one mask per sample."""
    config = MaskConfig(target_fraction=fraction)
    masks = [draw_mask(generator(seed, i), config, steps=16, bands=8, progress=1.0) for i in range(size)]
    context, target = (torch.from_numpy(np.stack(part)) for part in list(zip(*masks))[:2])
    return random_mel(size, 64, 128, seed=seed), context, target


def reference_loss(model: PupuJEPA, mel, context, target) -> float:
    """Smooth-L1 between reference predictions and standardised reference targets, in float64."""
    reference = ReferenceModel(model.state_dict(), model.config)
    losses = []
    for i in range(len(mel)):
        prediction = reference.predict(mel[i], context[i].numpy(), target[i].numpy())
        wanted = reference.encode(mel[i], which="teacher", chosen=target[i].numpy())
        wanted = (wanted - wanted.mean(-1, keepdim=True)) / torch.sqrt(
            wanted.var(-1, keepdim=True, correction=0) + 1e-5
        )
        gap = (prediction - wanted).abs()
        losses.append(torch.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean())
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_loss_agrees_with_an_independent_reference(small_model, fraction):
    """The paper recipe's loss equals the float64 reference to 1e-5: masked student, teacher on masked patches only."""
    mel, context, target = batch(fraction=fraction)
    loss, aux = TrainingStep(small_model, ObjectiveConfig())(mel, context, target)
    assert loss.item() == pytest.approx(reference_loss(small_model, mel, context, target), rel=1e-5)
    assert aux["per_sample_loss_B"].mean().item() == pytest.approx(loss.item())
    assert aux["prediction_BMD"].shape == aux["target_BMD"].shape == (*target.shape, SMALL.width)
    assert not any(tensor.requires_grad for tensor in aux.values())
    assert {tensor.dtype for tensor in aux.values()} == {torch.float32}


def test_targets_of_several_layers_are_means_of_normed_outputs(small_model):
    """target_layers = 2 averages the last two blocks' outputs, each normed without affine, then standardises."""
    mel, context, target = batch(1)
    _, aux = TrainingStep(small_model, ObjectiveConfig(target_layers=2))(mel, context, target)
    reference = ReferenceModel(small_model.state_dict(), SMALL)
    steps, positions = reference.positions(mel[0])
    chosen = [positions[i] for i in target[0].tolist()]
    tokens = patch_tokens(reference.tensors, mel[0].double())
    outputs = blocks(
        reference.tensors,
        "teacher",
        torch.stack([tokens[p] for p in chosen]),
        reference._angles(chosen, steps, SMALL.width // SMALL.heads),
        heads=SMALL.heads,
    )
    mean = torch.stack([functional.layer_norm(out, (SMALL.width,)) for out in outputs[-2:]]).mean(0)
    expected = functional.layer_norm(mean, (SMALL.width,))
    torch.testing.assert_close(aux["target_BMD"][0].double(), expected, atol=1e-5, rtol=1e-5)


def test_targets_are_standardised_per_token(small_model):
    """Each target token has mean 0 and variance 1; without `standardise` it is the teacher's normed output."""
    mel, context, target = batch()
    _, aux = TrainingStep(small_model, ObjectiveConfig())(mel, context, target)
    torch.testing.assert_close(aux["target_BMD"].mean(-1), torch.zeros(target.shape), atol=1e-5, rtol=0)
    torch.testing.assert_close(aux["target_BMD"].var(-1, correction=0), torch.ones(target.shape), atol=1e-3, rtol=0)
    _, raw = TrainingStep(small_model, ObjectiveConfig(standardise=False))(mel, context, target)
    torch.testing.assert_close(standardise(raw["target_BMD"]), aux["target_BMD"])
    assert not torch.allclose(raw["target_BMD"], aux["target_BMD"])


def test_teacher_sees_masked_patches_only(small_model):
    """Targets depend on the masked patches and not on the visible ones."""
    mel, context, target = batch(1)
    step = TrainingStep(small_model, ObjectiveConfig())
    _, before = step(mel, context, target)
    patches = mel.clone().reshape(1, 16, 4, 8, 16)
    first = int(context[0, 0])
    patches[0, first // 8, :, first % 8] += 1
    _, visible_changed = step(patches.reshape(1, 64, 128), context, target)
    assert torch.equal(before["target_BMD"], visible_changed["target_BMD"])
    assert not torch.equal(before["prediction_BMD"], visible_changed["prediction_BMD"])
    patches = mel.clone().reshape(1, 16, 4, 8, 16)
    first = int(target[0, 0])
    patches[0, first // 8, :, first % 8] += 1
    _, masked_changed = step(patches.reshape(1, 64, 128), context, target)
    assert not torch.equal(before["target_BMD"], masked_changed["target_BMD"])
    assert torch.equal(before["prediction_BMD"], masked_changed["prediction_BMD"])


@pytest.mark.parametrize("layers", [1, 2])
def test_full_grid_targets_are_what_the_teacher_makes_of_the_whole_crop(small_model, layers):
    """They are the inference features at the masked positions, so they depend on the visible patches too."""
    mel, context, target = batch()
    objective = ObjectiveConfig(target="full_grid", target_layers=layers)
    _, aux = TrainingStep(small_model, objective)(mel, context, target)
    with torch.no_grad():
        states = small_model.encode(mel, layers=[-1])
        if layers == 2:
            tokens = small_model.tokens(mel)
            outputs = small_model.teacher.top_outputs(tokens, encoder_rotation(SMALL, 16, mel.device), top=2)
            states = [torch.stack([standardise(output) for output in outputs]).mean(0)]
    expected = standardise(gather_tokens(states[0], target))
    torch.testing.assert_close(aux["target_BMD"], expected, atol=1e-5, rtol=1e-5)
    mel[:, : 4 * (int(context[0, 0]) // 8 + 1)] += 1
    _, visible_changed = TrainingStep(small_model, objective)(mel, context, target)
    assert not torch.allclose(visible_changed["target_BMD"], aux["target_BMD"])


def test_mae_reconstructs_normalised_patches():
    """Targets are each hidden patch's own values at mean 0 and variance 1, cut by hand; raw without standardise."""
    model = random_model(replace(SMALL, predictor_objective="mae"))
    mel, context, target = batch()
    _, aux = TrainingStep(model, ObjectiveConfig(kind="mae", loss="mse"))(mel, context, target)
    _, raw = TrainingStep(model, ObjectiveConfig(kind="mae", standardise=False))(mel, context, target)
    assert aux["prediction_BMD"].shape == aux["target_BMD"].shape == (*target.shape, 64)
    for i, m in ((0, 0), (1, 17), (2, target.shape[1] - 1)):
        step, band = divmod(int(target[i, m]), 8)
        patch = mel[i, 4 * step : 4 * step + 4, 16 * band : 16 * band + 16].flatten()
        torch.testing.assert_close(raw["target_BMD"][i, m], patch)
        expected = (patch - patch.mean()) / (patch.var(correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(aux["target_BMD"][i, m], expected, atol=1e-5, rtol=1e-5)


def test_mae_does_not_ask_the_teacher(monkeypatch):
    """No teacher runs in the step, but its average can follow the student as in any other run."""
    model = random_model(replace(SMALL, predictor_objective="mae"))
    step = TrainingStep(model, ObjectiveConfig(kind="mae"))
    monkeypatch.setattr(Transformer, "top_outputs", None)
    for block in step.teacher.blocks:
        monkeypatch.setattr(block, "forward", None)
    step(*batch())[0].backward()
    names, teachers, students = zip(*teacher_pairs(step))
    update_ema([t.data for t in teachers], [s.data for s in students], 0.0)
    assert all(torch.equal(t, s) for t, s in zip(teachers, students, strict=True)), names


def test_the_hinge_is_added_to_each_crops_loss(small_model):
    """With a weight, a crop's loss grows by weight times the hinge on the student's or the prediction's std."""
    mel, context, target = batch()
    _, plain = TrainingStep(small_model, ObjectiveConfig())(mel, context, target)
    with torch.no_grad():
        rotation = encoder_rotation(SMALL, 16, mel.device)
        student = small_model.student
        seen = student(*visible_to(student, small_model.tokens(mel), context, rotation))
    for which, features in (("student", seen), ("prediction", plain["prediction_BMD"])):
        objective = ObjectiveConfig(variance_weight=0.7, variance_of=which, variance_floor=3.0)
        loss, aux = TrainingStep(small_model, objective)(mel, context, target)
        expected = plain["per_sample_loss_B"] + 0.7 * variance_hinge(features, floor=3.0)
        torch.testing.assert_close(aux["per_sample_loss_B"], expected)
        torch.testing.assert_close(loss.detach(), expected.mean())
        alone = TrainingStep(small_model, objective)(mel[1:2], context[1:2], target[1:2])[0]
        torch.testing.assert_close(alone.detach(), expected[1])


def test_gradients_reach_all_but_the_teacher(small_model):
    """Every parameter of the step gets a gradient; the teacher is not among them and gets none."""
    mel, context, target = batch()
    step = TrainingStep(small_model, ObjectiveConfig())
    step(mel, context, target)[0].backward()
    names = [name for name, _ in step.named_parameters()]
    assert {name.split(".")[0] for name in names} == {"patch_embed", "student", "predictor"}
    assert [name for name, p in step.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None for p in step.teacher.parameters())
    assert not any(name.startswith("teacher") for name in step.state_dict())
    assert step.teacher is small_model.teacher


def test_targets_send_no_gradient_into_the_patch_embedding(small_model):
    """The patch embedding learns from the context alone: patches that only the teacher sees give it no gradient."""
    mel, context, target = batch(1)
    mel.requires_grad_()
    TrainingStep(small_model, ObjectiveConfig())(mel, context, target)[0].backward()
    touched = mel.grad.reshape(16, 4, 8, 16).abs().sum((1, 3)).flatten() > 0
    assert sorted(touched.nonzero().flatten().tolist()) == context[0].tolist()


def test_pairs_line_up(small_model):
    """Teacher and student parameters come in one order, with equal names and shapes."""
    for owner in (small_model, TrainingStep(small_model, ObjectiveConfig())):
        pairs = teacher_pairs(owner)
        assert [name for name, _, _ in pairs] == [name for name, _ in small_model.student.named_parameters()]
        for name, teacher, student in pairs:
            assert teacher is small_model.teacher.get_parameter(name)
            assert student is small_model.student.get_parameter(name)


def test_bf16_stays_close_and_keeps_float32_parameters():
    """Autocast inside forward gives nearly the float32 loss, float32 loss and targets, and float32 gradients."""
    mel, context, target = batch()
    full = TrainingStep(random_model(), ObjectiveConfig())(mel, context, target)[0]
    step = TrainingStep(random_model(), ObjectiveConfig(), torch.bfloat16)
    half, aux = step(mel, context, target)
    half.backward()
    assert half.dtype == aux["target_BMD"].dtype == torch.float32
    assert half.item() != full.item()
    assert half.item() == pytest.approx(full.item(), rel=2e-2)
    assert {p.grad.dtype for p in step.parameters()} == {torch.float32}


def test_activation_checkpointing_changes_nothing_but_memory():
    """Recomputed blocks give the same loss and the same gradients."""
    mel, context, target = batch()
    gradients = []
    for recompute in (False, True):
        step = TrainingStep(random_model(), ObjectiveConfig(), activation_checkpointing=recompute)
        step(mel, context, target)[0].backward()
        gradients.append({name: p.grad for name, p in step.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_optimisation_lowers_the_loss():
    """A few AdamW steps on one batch lower its loss markedly: the pieces work as a learner."""
    mel, context, target = batch(4)
    step = TrainingStep(PupuJEPA(SMALL), ObjectiveConfig())
    optimizer = torch.optim.AdamW(step.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss, _ = step(mel, context, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("autocast_dtype", [None, torch.bfloat16])
def test_step_needs_no_synchronisation(autocast_dtype):
    """Forward and backward run on fake tensors, which have no values, so nothing in them waits for one."""
    mel, context, target = batch()
    with FakeTensorMode() as mode:
        model = PupuJEPA(SMALL)
        step = TrainingStep(model, ObjectiveConfig(target_layers=2), autocast_dtype)
        loss, aux = step(*(mode.from_tensor(tensor) for tensor in (mel, context, target)))
        loss.backward()
    assert aux["per_sample_loss_B"].shape == (3,)
    with pytest.raises(DataDependentOutputException):
        loss.item()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "huber"}, "loss='huber' is unknown; choose one of smooth_l1, mse"),
        ({"beta": 0.0}, "beta=0.0 must be positive"),
        ({"target_layers": 0}, "target_layers=0 must be at least 1"),
        ({"kind": "dino"}, "kind='dino' is unknown; choose one of jepa, mae"),
        ({"target": "whole"}, "target='whole' is unknown; choose one of masked, full_grid"),
        ({"variance_of": "teacher"}, "variance_of='teacher' is unknown; choose one of student, prediction"),
        ({"variance_weight": -1.0}, "variance_weight=-1.0 must not be negative"),
        ({"kind": "mae", "target_layers": 4}, "asks no teacher, so target_layers=4 and target=masked have no effect"),
        (
            {"kind": "mae", "target": "full_grid"},
            "asks no teacher, so target_layers=1 and target=full_grid have no effect",
        ),
        (
            {"kind": "mae", "variance_of": "prediction"},
            "variance_of=prediction is meaningless; use variance_of=student",
        ),
    ],
)
def test_impossible_objectives_are_refused(change, message):
    """An objective that cannot be computed is refused on construction."""
    with pytest.raises(UserError, match=message):
        ObjectiveConfig(**change)


def test_impossible_steps_are_refused(small_model):
    """More target layers than blocks, and float16, are refused before anything runs."""
    with pytest.raises(UserError, match="target_layers=4 exceeds the teacher's 3 blocks"):
        TrainingStep(small_model, ObjectiveConfig(target_layers=4))
    with pytest.raises(UserError, match=r"kind=mae does not fit model.predictor_objective=jepa.*32 outputs per token"):
        TrainingStep(small_model, ObjectiveConfig(kind="mae"))
    with pytest.raises(UserError, match="float16 needs a gradient scaler"):
        TrainingStep(small_model, ObjectiveConfig(), torch.float16)


def test_losses_agree_with_their_definitions():
    """Each loss equals its definition, per token."""
    prediction, target = random_mel(2, 5, 32, seed=1), random_mel(2, 5, 32, seed=2)
    expected = {
        "smooth_l1": functional.smooth_l1_loss(prediction, target, reduction="none", beta=0.5).mean(-1),
        "mse": functional.mse_loss(prediction, target, reduction="none").mean(-1),
        "l1": functional.l1_loss(prediction, target, reduction="none").mean(-1),
        "cosine": 1 - functional.cosine_similarity(prediction, target, dim=-1),
        "norm_mse": (functional.normalize(prediction, dim=-1) - functional.normalize(target, dim=-1)).square().sum(-1),
    }
    assert set(expected) == set(LOSSES)
    for name, wanted in expected.items():
        ours = token_losses(prediction, target, loss=name, beta=0.5)
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(token_losses(target, target, loss=name), torch.zeros(2, 5), atol=1e-6, rtol=0)


def test_variance_hinge_is_the_gap_below_the_floor():
    """A constant crop costs the floor, a crop of std 2 nothing, and other crops do not matter."""
    spread = torch.tensor([[-2.0, 2.0], [2.0, -2.0]]).T.expand(1, 2, 2)
    crops = torch.cat([torch.ones(1, 2, 2), spread, torch.full((1, 2, 2), -5.0)])
    hinge = variance_hinge(crops, floor=1.0)
    torch.testing.assert_close(hinge, torch.tensor([0.99, 0.0, 0.99]))
    torch.testing.assert_close(variance_hinge(crops[1:2] / 8, floor=1.0), torch.tensor([1 - (1 / 16 + 1e-4) ** 0.5]))


def test_variance_hinge_pushes_tokens_apart():
    """Its gradient has the sign of a token's distance from the crop's mean, so a descent step spreads the tokens."""
    x = (random_mel(2, 6, 4) * 0.1).requires_grad_()
    variance_hinge(x, floor=1.0).sum().backward()
    centred = (x - x.mean(1, keepdim=True)).detach()
    assert torch.equal(x.grad.sign(), -centred.sign())
