import torch

from distributed.marble.features.reading import Features
from distributed.marble.probes.bank import Labelled, Training, train_bank
from distributed.marble.probes.heads import Variants
from distributed.marble.tasks.tasks import ProbeFit


def test_each_epoch_hears_one_of_a_slices_channels_and_all_are_equally_likely():
    """Slice 0 has three rows, slice 1 one, slice 2 a row twice among three: shares 1/3, 1 and 2/3."""
    variants = Variants(torch.tensor([[0, 1, 2], [3, 0, 0], [4, 4, 5]]), torch.tensor([3, 1, 3]))
    straight = torch.arange(3).unsqueeze(0)
    drawn = torch.cat([variants.drawn("t", (7,), epoch, straight) for epoch in range(3000)])
    assert set(drawn[:, 1].tolist()) == {3}
    for row, slice_, share in ((0, 0, 1 / 3), (1, 0, 1 / 3), (2, 0, 1 / 3), (4, 2, 2 / 3), (5, 2, 1 / 3)):
        assert abs((drawn[:, slice_] == row).float().mean() - share) < 0.05
    assert torch.equal(variants.drawn("t", (7,), 5, straight), drawn[5:6])


def test_rows_follow_the_order_of_the_slices():
    """In any order of an epoch, a slice gets one of its own rows."""
    variants = Variants(torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.tensor([2, 2, 2]))
    order_SN = torch.tensor([[2, 0, 1], [1, 2, 0]])
    assert torch.equal(variants.drawn("t", (0, 1), 3, order_SN) // 2, order_SN)


def test_a_slice_with_one_channel_trains_as_without_a_choice():
    """Equal rows give the same probes, to the bit."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 20, 1, 4, generator=g), torch.randint(0, 3, (20,), generator=g)
    fit = ProbeFit(hidden=6, dropout=0.2, learning_rates=(1e-2,), seeds=(0,), max_epochs=3, batch_size=8)
    training = Training(fit=fit, kind="multiclass", outputs=3, protocol="marble", name="t")
    plain = Labelled(Features(x), y, torch.arange(20), y)
    rows = torch.arange(20).unsqueeze(1)
    chosen = Labelled(Features(x), y, torch.arange(20), y, Variants(rows.repeat(1, 2), torch.full((20,), 2)))
    banks = [train_bank(training, train, plain, on_epoch=lambda epoch: None) for train in (plain, chosen)]
    assert all(torch.equal(a, b) for a, b in zip(*(bank.heads[0].weights for bank in banks), strict=True))
