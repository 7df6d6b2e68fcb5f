import torch
from torch.nn import functional

from pupujepa.training.losses import LOSSES, token_losses, variance_hinge
from tests.pupujepa.models import random_mel


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
