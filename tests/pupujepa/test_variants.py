"""Properties of every variant: it learns, has the computed cost, compiles whole, and never waits for the device."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pupujepa.cost.cost import count_parameters, inference_flops, training_cost
from pupujepa.model.model import PupuJEPA
from pupujepa.training.ema import update_ema
from pupujepa.training.objective import teacher_pairs
from tests.pupujepa.models import random_mel, random_model
from tests.pupujepa.variants import VARIANTS

each_variant = pytest.mark.parametrize("name", list(VARIANTS))


def train(step, batch, *, steps: int, momentum: float = 0.99) -> list[float]:
    """Trains on one batch as a run does, including the teacher's average, and returns the losses."""
    optimizer = torch.optim.AdamW(step.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss, _ = step(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _, teachers, students = zip(*teacher_pairs(step))
        update_ema([t.data for t in teachers], [s.data for s in students], momentum)
        losses.append(loss.item())
    return losses


@each_variant
def test_it_learns(name):
    """Thirty steps on one batch lower its loss, which stays finite; the teacher follows the student throughout."""
    variant = VARIANTS[name]
    step = variant.step()
    before = [t.clone() for _, t, _ in teacher_pairs(step)]
    losses = train(step, variant.batch(4), steps=30)
    assert all(0 <= loss < 1e3 for loss in losses)
    assert losses[-1] < 0.95 * losses[0]
    after = [t for _, t, _ in teacher_pairs(step)]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


@each_variant
def test_gradients_reach_every_parameter(name):
    """Each trained parameter gets a gradient that is finite and not zero; the teacher gets none."""
    variant = VARIANTS[name]
    step = variant.step()
    # at the initial weights biases are zero and hide nothing, but let every term take part
    with torch.no_grad():
        for i, parameter in enumerate(step.parameters()):
            noise = torch.Generator().manual_seed(i)
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.05)
    step(*variant.batch())[0].backward()
    without = [n for n, p in step.named_parameters() if p.grad is None or not p.grad.any() or p.grad.isnan().any()]
    assert without == []
    assert all(p.grad is None for p in step.teacher.parameters())


@each_variant
def test_cost_and_parameters_are_exact(name):
    """Forward and backward operations equal torch's count, and parameters those of the built model."""
    variant = VARIANTS[name]
    step = variant.step()
    # the plain backend: fused ones recompute scores in their backward pass, which is their business, not the model's
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step(*variant.batch(1))[0].backward()
    assert counter.get_total_flops() == training_cost(variant.model, variant.masks, variant.objective).total
    model = PupuJEPA(variant.model)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.encode(random_mel(1, variant.model.crop_frames, 128))
    assert counter.get_total_flops() == inference_flops(variant.model)
    counts = count_parameters(variant.model)
    assert counts.trained == sum(p.numel() for p in step.parameters())
    assert counts.encoder == sum(p.numel() for p in step.teacher.parameters())
    assert counts.predictor == sum(p.numel() for p in step.predictor.parameters())


@each_variant
@pytest.mark.parametrize("autocast_dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_step_needs_no_synchronisation(name, autocast_dtype):
    """Forward and backward run on fake tensors, which have no values, so nothing in them waits for one."""
    variant = VARIANTS[name]
    batch = variant.batch()
    with FakeTensorMode() as mode:
        step = variant.step(autocast_dtype)
        loss, aux = step(*(mode.from_tensor(tensor) for tensor in batch))
        loss.backward()
    assert aux["per_sample_loss_B"].shape == (3,)
    assert aux["prediction_BMD"].shape == aux["target_BMD"].shape
    assert {tensor.dtype for tensor in (loss, *aux.values())} == {torch.float32}
    with pytest.raises(DataDependentOutputException):
        loss.item()


@each_variant
def test_bf16_stays_close(name):
    """Autocast gives nearly the float32 loss."""
    variant = VARIANTS[name]
    batch = variant.batch()
    full, half = (variant.step(dtype)(*batch)[0].item() for dtype in (None, torch.bfloat16))
    assert half == pytest.approx(full, rel=3e-2)


@each_variant
def test_teacher_and_student_encode(name):
    """Student and teacher give depth + 1 finite, initially equal states of a whole crop and of a shorter clip."""
    config = VARIANTS[name].model
    model = PupuJEPA(config).eval()
    for frames in (config.crop_frames, config.crop_frames // 2):
        mel = random_mel(2, frames, 128)
        with torch.no_grad():
            teacher, student = (model.encode(mel, which=which) for which in ("teacher", "student"))
        tokens = frames // config.patch_frames * config.grid_bands
        assert [s.shape for s in teacher] == [(2, tokens, config.width)] * (config.depth + 1)
        assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(teacher, student, strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "released",
        "frames",
        "full grid, two layers",
        "mae",
        "cosine",
        "variance of the prediction",
        "learned positions",
        "sincos positions",
        "no positions",
        "gelu",
        "qk-norm",
        "all at once",
    ],
)
def test_the_step_is_one_graph(name):
    """torch.compile takes the step whole (fullgraph), and the graph computes the same loss and gradients."""
    variant = VARIANTS[name]
    batch = variant.batch()
    plain, traced = variant.step(), variant.step()
    plain(*batch)[0].backward()
    torch.compiler.reset()
    loss, _ = torch.compile(traced, fullgraph=True, backend="eager")(*batch)
    loss.backward()
    for (parameter, p), q in zip(plain.named_parameters(), traced.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, parameter=parameter: f"{parameter}: {text}")


# torch's tracer makes an instance of every autograd function it meets, which torch itself warns about
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["released", "frames"])
def test_forward_and_backward_are_one_graph_in_bf16_with_checkpointing(name):
    """Ahead-of-time tracing takes forward and backward under autocast with recomputed blocks."""
    variant = VARIANTS[name]
    step = variant.step(torch.bfloat16, activation_checkpointing=True)
    torch.compiler.reset()
    loss, _ = torch.compile(step, fullgraph=True, backend="aot_eager")(*variant.batch())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters())


def test_released_keys_know_nothing_of_variants():
    """The default architecture has exactly the released tensors; each variant adds or changes only its own."""
    names = {name: set(random_model(VARIANTS[name].model).state_dict()) for name in VARIANTS}
    released = names["released"]
    assert not any(("norm." in key and "attn" in key) or "position" in key for key in released)
    stacks = [
        f"{stack}.blocks.{i}."
        for stack, depth in (("student", 3), ("teacher", 3), ("predictor", 2))
        for i in range(depth)
    ]
    added = {
        "qk-norm": {f"{b}attn.{n}_norm.{p}" for b in stacks for n in "qk" for p in ("weight", "bias")},
        "learned positions": {f"{s}.positions.position_table" for s in ("student", "teacher", "predictor")},
    }
    for name in (
        "frames",
        "mae",
        "gelu",
        "sincos positions",
        "no positions",
        "full grid",
        "qk-norm",
        "learned positions",
    ):
        assert names[name] - released == added.get(name, set()), name
        assert released <= names[name], name
