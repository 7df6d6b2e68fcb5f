import numpy as np
import torch

from distributed.marble.probes.heads import item_outputs, loss_of_heads, pool_items
from distributed.marble.tasks.marble_tasks import MARBLE_TASKS

ROWS = {t.name: t for t in MARBLE_TASKS}


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
    """Logits of a track's slices are averaged, in any order of slices."""
    logits = torch.arange(12.0).reshape(1, 6, 1, 2)
    items = pool_items(logits, torch.tensor([0, 1, 0, 2, 2, 2]), 3)
    np.testing.assert_allclose(items[0, :, 0, 0], [2.0, 2.0, 8.0])


def test_the_loss_of_frames_leaves_out_those_without_a_class():
    """Cross entropy of counted frames equals torch's with ignore_index; without counted frames the loss is 0."""
    g = torch.Generator().manual_seed(1)
    logits, classes = torch.randn(2, 8, 6, 4, generator=g), torch.randint(-1, 4, (8, 6), generator=g)
    theirs = [torch.nn.functional.cross_entropy(x.flatten(0, 1), classes.flatten(), ignore_index=-1) for x in logits]
    torch.testing.assert_close(loss_of_heads(logits, classes, "frame_classes"), torch.stack(theirs))
    assert loss_of_heads(logits, torch.full((8, 6), -1), "frame_classes").tolist() == [0.0, 0.0]


def test_quirk_upstream_averages_logits_in_bf16():
    """256 and 257 are equal in bf16: the slices' mean ties two classes that clean separates."""
    logits = torch.tensor([[256.0, 257.0], [256.0, 257.0]]).reshape(1, 2, 1, 2)
    both = torch.tensor([0, 0])
    marble = item_outputs(ROWS["GS"].under("marble"), logits, both, 1)
    clean = item_outputs(ROWS["GS"].under("clean"), logits, both, 1)
    assert marble.flatten().tolist() == [256.0, 256.0]
    assert clean.flatten().tolist() == [256.0, 257.0]


def test_quirk_upstream_rounds_the_probabilities_of_tags_to_bf16():
    """Logits 7 and 8 have probabilities .9991 and .9997, both 1 in bf16: a tie that clean does not have."""
    logits = torch.tensor([[7.0, 8.0, -6.0, 0.0]]).reshape(1, 1, 1, 4)
    one = torch.tensor([0])
    marble = item_outputs(ROWS["MTT"].under("marble"), logits, one, 1).flatten()
    clean = item_outputs(ROWS["MTT"].under("clean"), logits, one, 1).flatten()
    assert marble[0] == marble[1]
    assert marble.isfinite().all()
    assert marble[2] < marble[3] == 0 < marble[0]
    assert clean.tolist() == [7.0, 8.0, -6.0, 0.0]


def test_genres_are_averaged_as_probabilities():
    """Softmax precedes the mean of slices: one confident slice does not outvote two less confident ones."""
    logits = torch.tensor([[9.0, 0.0], [0.0, 1.5], [0.0, 1.5]]).reshape(1, 3, 1, 2)
    items = torch.tensor([0, 0, 0])
    for protocol in ("marble", "clean"):
        pooled = item_outputs(ROWS["GTZANGenre"].under(protocol), logits, items, 1)
        torch.testing.assert_close(pooled.exp().flatten(), logits.softmax(-1).mean(dim=(0, 1, 2)))
        assert pooled.argmax() == 1


def test_predictions_of_emotion_are_averaged_in_float32():
    """Upstream casts before averaging: the mean of 256 and 257 is 256.5, which bf16 cannot represent."""
    predictions = torch.tensor([[256.0, 1.0], [257.0, 1.0]]).reshape(1, 2, 1, 2)
    for protocol in ("marble", "clean"):
        mean = item_outputs(ROWS["EMO"].under(protocol), predictions, torch.tensor([0, 0]), 1)
        assert mean.flatten().tolist() == [256.5, 1.0]
