"""The sums of a step's losses: over micro-batches, by strategy and corpus, and what a loss that is not finite does."""

import math
from types import SimpleNamespace

import pytest
import torch

from distributed.trainer import LossSums, nan_unless_finite

pytestmark = pytest.mark.usefixtures("alone")
CPU = torch.device("cpu")


def batch_of(strategies, uids=()):
    return SimpleNamespace(strategy=torch.tensor(strategies), uids=list(uids))


def result_of(sums, *, stop_requested=False, grad_norm=1.0):
    sums.start_all_reduce(stop_requested=stop_requested)
    return sums.wait(grad_norm=grad_norm)


def test_losses_are_means_over_all_micro_batches():
    """Of the whole batch, and of each strategy that occurred."""
    sums = LossSums(["corpus"], CPU)
    sums.add(batch_of([0, 2]), torch.tensor([1.0, 3.0]))
    sums.add(batch_of([0, 0]), torch.tensor([2.0, 6.0]))
    result = result_of(sums)
    assert result.loss == 3.0
    assert result.by_group == {"loss_random": 3.0, "loss_time_frequency": 3.0}
    assert result.row() == {"skipped": 0, "loss": 3.0, "grad_norm": 1.0} | result.by_group
    assert result.stop_requests == 0


def test_losses_of_a_mix_are_reported_by_corpus():
    """Samples of a mix are named after their corpus; one that was not drawn has no loss."""
    sums = LossSums(["studio", "live", "radio"], CPU)
    sums.add(batch_of([0, 1, 2], ["studio/a", "live/b", "studio/c"]), torch.tensor([1.0, 4.0, 2.0]))
    result = result_of(sums)
    assert {k: v for k, v in result.by_group.items() if k.startswith("mix/")} == {
        "mix/studio/loss": 1.5,
        "mix/live/loss": 4.0,
    }
    assert result.loss == pytest.approx(7 / 3)


def test_a_request_to_stop_travels_with_the_losses():
    """It is counted by ranks; here there is one."""
    sums = LossSums([], CPU)
    sums.add(batch_of([0]), torch.tensor([1.0]))
    assert result_of(sums, stop_requested=True).stop_requests == 1


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("crop", [0, 1])
def test_a_loss_that_is_not_finite_makes_every_gradient_nan(bad, crop):
    """Infinite ones too, whose gradients here are finite: DeepSpeed skips an update without a norm on every rank."""
    weight = torch.ones((), requires_grad=True)
    loss_B = weight + torch.tensor([1.0, 1.0])
    per_crop_B = loss_B.detach().clone()
    per_crop_B[crop] = bad
    nan_unless_finite(loss_B.mean(), per_crop_B).backward()
    assert math.isnan(weight.grad.item())


def test_a_finite_loss_stays_as_it_is():
    """To the last bit, and so does its gradient."""
    weight = torch.tensor(0.1, requires_grad=True)
    loss = weight * 3
    kept = nan_unless_finite(loss, torch.tensor([0.3]))
    kept.backward()
    assert kept.item() == loss.item()
    assert weight.grad.item() == 3.0


@pytest.mark.parametrize(("loss", "grad_norm", "fault"), [(math.nan, 1.0, "the loss is nan"), (1.0, math.inf, "norm")])
def test_a_skipped_step_says_why(loss, grad_norm, fault):
    """Its row holds neither a loss nor a norm, which no reader should average."""
    sums = LossSums([], CPU)
    sums.add(batch_of([0]), torch.tensor([loss]))
    result = result_of(sums, grad_norm=grad_norm)
    assert fault in result.fault
    assert not result.is_finite
    assert result.row() == {"skipped": 1}
