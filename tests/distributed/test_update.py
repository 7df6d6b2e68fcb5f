"""One update: a step whose loss is no number changes nothing, whatever its gradients would have been."""

import math
from types import SimpleNamespace

import pytest
import torch

from distributed.update import update
from distributed.watchdog import Whereabouts

pytestmark = pytest.mark.usefixtures("alone")


class ShiftEngine:
    """An engine without ZeRO around one weight; its loss is the weight plus the input, so its gradient is always 1."""

    device = torch.device("cpu")

    def __init__(self, *, micro_batches):
        self.module = torch.nn.Linear(1, 1, bias=False)
        self.micro_steps = self.global_steps = self.updates = 0
        self._micro_batches = micro_batches

    def __call__(self, mel, context, target):
        loss_B = self.module.weight.flatten() + mel
        return loss_B.mean(), {"per_sample_loss_B": loss_B.detach()}

    def gradient_accumulation_steps(self):
        return self._micro_batches

    def zero_optimization_stage(self):
        return 0

    def backward(self, loss):
        (loss / self._micro_batches).backward()

    def zero_grad(self):
        self.module.zero_grad()

    def step(self):
        self.micro_steps += 1
        if self.micro_steps % self._micro_batches == 0:
            self.updates += 1


def batches(*inputs):
    for value in inputs:
        batch = SimpleNamespace(step=3, context=None, target=None)
        batch.mel = lambda value=value: torch.full((2,), value)
        batch.strategy = torch.zeros(2, dtype=torch.long)
        batch.to = lambda device, batch=batch: batch
        yield batch


def taken(*inputs, clip_norm=0.0):
    engine = ShiftEngine(micro_batches=len(inputs))
    stream = batches(*inputs)
    done = update(engine, stream, step=3, clip_norm=clip_norm, asked=lambda: True, whereabouts=Whereabouts())
    return engine, done


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [0, 1])
def test_a_loss_that_is_no_number_updates_nothing(bad, place):
    """Infinite ones too, whose gradients here are finite, and in any micro-batch; the request to stop is heard."""
    inputs = [1.0, 1.0]
    inputs[place] = bad
    engine, done = taken(*inputs)
    assert (engine.updates, engine.global_steps, engine.micro_steps) == (0, 1, 2)
    assert engine.module.weight.grad is None
    assert done.fault.startswith("the loss is")
    assert done.losses.stops == 1
    assert len(done.micro_batches) == 2


def test_a_good_step_updates_with_the_clipped_gradient():
    """The norm is that before clipping."""
    engine, done = taken(1.0, 3.0, clip_norm=0.25)
    assert engine.updates == 1
    assert not done.fault
    assert done.norm == 1.0
    assert engine.module.weight.grad.item() == pytest.approx(0.25)
    assert done.losses.loss == pytest.approx(2 + engine.module.weight.item())
