import numpy as np
import torch

from distributed.marble.outputs import loss_of_heads, pool_items


def test_losses_are_torchs_for_each_head():
    """Cross entropy, binary cross entropy and squared error over heads equal torch's on each head."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 4, generator=g)
    classes, bits = torch.randint(0, 4, (8,), generator=g), torch.rand(8, 4, generator=g)
    f = torch.nn.functional
    for kind, targets, reference in (
        ("multiclass", classes, f.cross_entropy),
        ("multilabel", bits, f.binary_cross_entropy_with_logits),
        ("regression", bits, f.mse_loss),
    ):
        ours = loss_of_heads(logits, targets, kind)
        theirs = torch.stack([torch.stack([reference(x, targets) for x in row]) for row in logits])
        torch.testing.assert_close(ours, theirs)


def test_items_are_the_means_of_their_slices():
    """Slices of one track average their logits, whatever their order."""
    logits = torch.arange(12.0).reshape(1, 6, 1, 2)
    items = pool_items(logits, torch.tensor([0, 1, 0, 2, 2, 2]), 3)
    np.testing.assert_allclose(items[0, :, 0, 0], [2.0, 2.0, 8.0])
