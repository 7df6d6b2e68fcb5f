"""What a GPU would refuse or wait for, found without one: tensors that only say where they are.

torch's fake tensors have a shape, a type and a device, here cuda:0, and no values. Mixing devices is an error as on a
GPU, and so is asking for a value. Copies for which the host would wait are made errors too.
"""

from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.stream.batches import Batch
from distributed.engine.teacher import Teacher
from distributed.experiment import load_experiment
from distributed.processes.stop import StopRequest
from distributed.processes.watchdog import Whereabouts
from distributed.trainer import Trainer
from pupujepa.model.model import PupuJEPA
from pupujepa.training.masks import num_context, num_targets
from pupujepa.training.objective import TrainingStep
from tests.pupujepa.models import SMALL
from tests.pupujepa.variants import VARIANTS

GPU = torch.device("cuda", 0)
CROPS, MICRO_BATCHES = 3, 2
RELEASED = VARIANTS["released"]


class WaitedError(AssertionError):
    """The host would have waited for the GPU."""


class _Copies(TorchDispatchMode):
    """Refuses copies between devices for which the host waits: all but those to the GPU that say non_blocking."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        came_from = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.ndim}
        went_to = {x.device.type for x in tree_leaves(result) if isinstance(x, torch.Tensor)}
        if went_to == {"cpu"} and "cuda" in came_from:
            raise WaitedError(f"{function} brings values to the host")
        if came_from == {"cpu"} and "cuda" in went_to and not _without_waiting(args, kwargs):
            raise WaitedError(f"{function} copies to the GPU and waits")
        return result


def _without_waiting(args, kwargs):
    # copy_ takes it by its place
    return kwargs.get("non_blocking") or any(arg is True for arg in args)


class _Literals(TorchFunctionMode):
    """Refuses tensors on the GPU made from Python's numbers, which are copied there and waited for."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            raise WaitedError(f"{function.__name__} copies a Python number to the GPU and waits")
        return function(*args, **kwargs)


@contextmanager
def gpu(monkeypatch, *, waits=True):
    """Within, tensors on cuda:0 can be made, and autocast takes it for a GPU with bf16.

    Args:
        waits: False makes it an error that the host waits.
    """
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        for mode in () if waits else (_Copies(), _Literals()):
            stack.enter_context(mode)
        yield


def model_of(variant):
    with torch.device("meta"):
        model = PupuJEPA(variant.model)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                own = torch.empty(parameter.shape, device=GPU)
                module._parameters[name] = nn.Parameter(own, parameter.requires_grad)
    return model


def step_of(variant):
    return TrainingStep(model_of(variant), variant.objective, torch.bfloat16)


def inputs_of(variant, device=GPU):
    config, patches = variant.model, variant.model.num_patches
    shapes = ((CROPS, num_context(variant.masks, patches)), (CROPS, num_targets(variant.masks, patches)))
    mel = torch.empty(CROPS, config.crop_frames, config.mel_bands, device=device)
    return mel, *(torch.empty(shape, dtype=torch.int64, device=device) for shape in shapes)


def test_waiting_and_mixing_are_caught(monkeypatch):
    """The tools work: a value asked for, a number or a tensor copied, and two devices in one sum are errors."""
    with gpu(monkeypatch, waits=False):
        here, there = torch.empty(2), torch.empty(2, device=GPU)
        with pytest.raises(DataDependentOutputException):
            there.sum().item()
        with pytest.raises(WaitedError, match="Python number"):
            torch.tensor([1.0], device=GPU)
        with pytest.raises(WaitedError, match="copies to the GPU"):
            here.to(GPU)
        with pytest.raises(WaitedError, match="to the host"):
            there.cpu()
        with pytest.raises(RuntimeError, match="devices"):
            here + there
        assert here.to(GPU, non_blocking=True).device == GPU


@pytest.mark.parametrize("name", VARIANTS)
def test_the_training_step_stays_on_the_gpu(monkeypatch, name):
    """Of every variant: nothing is made elsewhere and copied, and nothing waits; loss and outputs are there."""
    with gpu(monkeypatch, waits=False):
        loss, aux = step_of(VARIANTS[name])(*inputs_of(VARIANTS[name]))
        for value in (loss, *aux.values()):
            assert (value.device, value.dtype) == (GPU, torch.float32)


@pytest.mark.parametrize("name", ["released", "qk-norm", "learned positions"])
def test_attention_gets_what_flash_kernels_take(monkeypatch, name):
    """Queries, keys and values are bf16, their last axes dense and multiples of eight long, in student and teacher."""
    seen = []

    def attend(*tensors):
        seen.extend(tensors)
        return tensors[0]

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    with gpu(monkeypatch):
        step_of(VARIANTS[name])(*inputs_of(VARIANTS[name]))
    assert len(seen) == 3 * (2 * SMALL.depth + SMALL.predictor_depth)
    for tensor in seen:
        assert tensor.dtype == torch.bfloat16
        assert tensor.stride(-1) == 1
        assert tensor.shape[-1] % 8 == 0


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_encoding_stays_on_the_gpu(monkeypatch, which):
    """All layers of a whole spectrogram, longer than a training crop too."""
    with gpu(monkeypatch, waits=False):
        mel = torch.empty(2, 2 * SMALL.crop_frames, SMALL.mel_bands, device=GPU)
        states = model_of(RELEASED).encode(mel, which=which)
        assert {state.device for state in states} == {GPU}


class BackwardBegunError(Exception):
    """The last backward pass has begun."""


class PretendedEngine:
    """What a training step needs of an engine up to its last backward pass."""

    def __init__(self, step):
        self.module, self._backwards = step, 0
        self.optimizer = SimpleNamespace(param_groups=[{}])

    def __call__(self, *inputs):
        return self.module(*inputs)

    def gradient_accumulation_steps(self):
        return MICRO_BATCHES

    def backward(self, loss):
        assert loss.device == GPU
        self._backwards += 1
        if self._backwards == MICRO_BATCHES:
            raise BackwardBegunError

    def step(self):
        pass


def batches():
    mel, context, target = inputs_of(RELEASED, torch.device("cpu"))
    of_crops, one = torch.empty(CROPS, dtype=torch.int64), torch.ones(CROPS)
    uids = [f"{name}/track" for name in ("studio", "live", "studio")]
    while True:
        yield Batch(7, 0, 0, uids, mel.half(), one, one - 1, context, target, of_crops, of_crops, of_crops)


def trainer_of(engine, *corpora):
    """A trainer at step 7 whose other parts do nothing."""
    parts = SimpleNamespace(
        topology=None,
        device=GPU,
        engine=engine,
        teacher=None,
        stream=SimpleNamespace(corpora=SimpleNamespace(members=[SimpleNamespace(name=name) for name in corpora])),
        checkpoints=SimpleNamespace(longest_save_s=0.0),
        watch=SimpleNamespace(longest_probe_s=0.0),
        log=SimpleNamespace(start_step=lambda: None, seconds_per_step=0.0),
        faulty=None,
        whereabouts=Whereabouts(),
    )
    return Trainer(load_experiment(["demo"]), parts, first_step=7)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("corpora", [("",), ("studio", "live")], ids=["one corpus", "a mix"])
def test_nothing_waits_between_forward_and_backward(monkeypatch, corpora):
    """Up to the last backward pass of a step, so that the GPU has its work ahead of time."""
    with gpu(monkeypatch, waits=False), pytest.raises(BackwardBegunError):
        trainer_of(PretendedEngine(step_of(RELEASED)), *corpora).train_step(batches(), StopRequest())


def test_the_teacher_follows_on_the_gpu(monkeypatch):
    """An unlogged move waits for nothing."""
    with gpu(monkeypatch, waits=False):
        assert Teacher(step_of(RELEASED)).follow(0.99) == {}
