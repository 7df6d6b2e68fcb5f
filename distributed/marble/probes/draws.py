"""Random draws of a probe: initial weights, batch order, dropout, and the channel of each slice.

All draws are keyed by the task's name and the seed, so that a probe draws the same alone and in a bank.

Legend: L layers, S seeds, K learning rates, N slices, V variants of a slice, U hidden units.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distributed.marble.tasks.tasks import ProbeFit, Readout
from pupujepa.randomness import torch_seed


@dataclass(frozen=True)
class Variants:
    """Equally likely feature rows of each slice; one is drawn every epoch.

    Attributes:
        rows_NV: rows; those beyond a slice's count are never drawn.
        count_N: number of rows of each slice.
    """

    rows_NV: Tensor
    count_N: Tensor

    def drawn(self, name: str, seeds: Sequence[int], epoch: int, order_SN: Tensor) -> Tensor:
        """Returns the rows [S, N] of an epoch, in the order of each seed."""
        rows = []
        for seed, order_N in zip(seeds, order_SN, strict=True):
            generator = torch.Generator().manual_seed(torch_seed("probe channel", name, seed, epoch))
            share_N = torch.rand(len(self.count_N), generator=generator).to(self.count_N.device)
            chosen_N = self.rows_NV.gather(1, (share_N * self.count_N).long().unsqueeze(1)).squeeze(1)  # uniform
            rows.append(chosen_N[order_N])
        return torch.stack(rows)


def order(name: str, seed: int, epoch: int, slices: int) -> Tensor:
    """Returns the order of an epoch's slices, [N]."""
    generator = torch.Generator().manual_seed(torch_seed("probe order", name, seed, epoch))
    return torch.randperm(slices, generator=generator)


def dropout_masks(name: str, fit: ProbeFit, rows: int, when: tuple[int, int]) -> Tensor | None:
    """Returns factors [S, rows, U]; None without dropout.

    Layers and rates of a seed share its mask.
    """
    if not fit.hidden or not fit.dropout:
        return None
    masks = []
    for seed in fit.seeds:
        generator = torch.Generator().manual_seed(torch_seed("probe dropout", name, seed, *when))
        kept = torch.rand(rows, fit.hidden, generator=generator) >= fit.dropout
        masks.append(kept.float() / (1 - fit.dropout))
    return torch.stack(masks)


def initial_mixing(name: str, fit: ProbeFit, readout: Readout, *, sizes: tuple[int, int]) -> tuple[Tensor, ...]:
    """Returns initial tensors [1, S, K, ...] of a readout.

    They are equal shares [L], or torch's `Linear` from L * D to D.

    Args:
        sizes: layers and width.
    """
    heads, (layers, width) = (1, len(fit.seeds), len(fit.learning_rates)), sizes
    if readout == "weighted":
        return (torch.zeros(*heads, layers),)
    if readout != "reduced":
        return ()
    return _linear(("probe reduction", name, 0), fit, heads=heads, size=(width, layers * width))


def initial_weights(
    name: str, fit: ProbeFit, heads: tuple[int, int, int], sizes: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Returns weights and biases with torch's default for `Linear`, equal for all rows and rates.

    Args:
        heads: L, S, K.
        sizes: width of the features and number of outputs.
    """
    width, outputs = sizes
    shapes = [(fit.hidden, width), (outputs, fit.hidden)] if fit.hidden else [(outputs, width)]
    pairs = [_linear(("probe weights", name, i), fit, heads=heads, size=size) for i, size in enumerate(shapes)]
    return tuple(tensor for pair in pairs for tensor in pair)


def _linear(
    what: tuple[str, str, int], fit: ProbeFit, *, heads: tuple[int, int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Returns weight [*heads, *size] and bias [*heads, size[0]], drawn per seed.

    They are uniform within 1 / sqrt(columns).
    """
    use, name, number = what

    def drawn(*dims: int) -> Tensor:
        draws = []
        for seed in fit.seeds:
            generator = torch.Generator().manual_seed(torch_seed(use, name, seed, number, len(dims)))
            # torch's default for `Linear`: uniform within 1 / sqrt(inputs), weights and bias
            draws.append((torch.rand(dims, generator=generator) * 2 - 1) / size[1] ** 0.5)
        # equal for all rows and rates, but with separate memory: each head trains its own
        return torch.stack(draws).reshape(1, heads[1], 1, *dims).expand(*heads, *dims).contiguous()

    return drawn(*size), drawn(size[0])
