"""Heads of a bank: readouts of layers, linear or MLP heads, losses and items, for all heads at once.

Readout "layers" has a head for each layer alone. The others have one head for all layers: "mean", "weighted" (a sum
with learned softmax weights) and "reduced" (a learned linear map of all layers side by side to the width of one,
MARBLE's `MLPReduce`). A readout is trained together with its head.

All random draws (initial weights, batch order, dropout, the channel of each slice) are keyed by the task's name and the
seed, so that a probe draws the same alone and in a bank.

Legend: L layers, R rows of heads (the layers, or one), S seeds, K learning rates, X = 1 where the rates share an input
and K where they do not, N slices, V variants of a slice, T frames, D width, U hidden units,
C outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from distributed.marble.tasks.tasks import ProbeFit, Readout, TargetKind, Task
from pupujepa.precision import hardware_bf16
from pupujepa.randomness import torch_seed

_MIXING_TENSORS: dict[Readout, int] = {"layers": 0, "mean": 0, "weighted": 1, "reduced": 2}
# log-odds for bf16 probabilities of exactly 0 and 1: beyond all others
_LARGEST_LOG_ODDS = 1e3


@dataclass(frozen=True)
class Heads:
    """Probes of one readout."""

    readout: Readout
    of_layers: range  # layers that it reads
    # tensors of the readout, then one or two (weight, bias) pairs; all start with [R, S, K]
    weights: tuple[Tensor, ...]

    @property
    def rows(self) -> int:
        """R."""
        return self.weights[-1].shape[0]

    def logits(self, x_LSNTD: Tensor, dropout_SRU: Tensor | None = None, *, bf16: bool = False) -> Tensor:
        """Returns the outputs [R, S, K, N, T, C], float32.

        Args:
            x_LSNTD: features of the layers of these heads; S may be 1 for all seeds.
            bf16: compute under bf16 autocast, as upstream does, rounding inputs and outputs of every product.
        """
        mixing = _MIXING_TENSORS[self.readout]
        with torch.autocast(x_LSNTD.device.type, torch.bfloat16, enabled=bf16):
            x_RSXNTD = _mixed(self.readout, self.weights[:mixing], x_LSNTD)
            return _forward(self.weights[mixing:], x_RSXNTD, dropout_SRU).float()

    def only(self, row: int, rate: int) -> "Heads":
        """Returns the probes of one row and learning rate (all seeds)."""
        layers = self.of_layers[row : row + 1] if self.readout == "layers" else self.of_layers
        weights = tuple(w[row : row + 1, :, rate : rate + 1] for w in self.weights)
        return replace(self, of_layers=layers, weights=weights)


def new_heads(name: str, fit: ProbeFit, readout: Readout, *, of_layers: range, sizes: tuple[int, int]) -> Heads:
    """Returns untrained heads; `name` keys the random draws, `sizes` are width and number of outputs."""
    rows, (width, outputs) = len(of_layers) if readout == "layers" else 1, sizes
    shape = (rows, len(fit.seeds), len(fit.learning_rates))
    weights: list[Tensor] = []
    if readout == "weighted":
        weights.append(torch.zeros(*shape, len(of_layers)))  # equal shares
    if readout == "reduced":
        size = (width, len(of_layers) * width)
        weights += _linear_weights(("probe reduction", name, 0), fit, heads=shape, size=size)
    products = [(fit.hidden, width), (outputs, fit.hidden)] if fit.hidden else [(outputs, width)]
    for number, size in enumerate(products):
        weights += _linear_weights(("probe weights", name, number), fit, heads=shape, size=size)
    return Heads(readout, of_layers, tuple(weights))


def _mixed(readout: Readout, learned: tuple[Tensor, ...], x_LSNTD: Tensor) -> Tensor:
    """Returns the input of the heads, [R, S, X, N, T, D]."""
    if readout == "layers":
        return x_LSNTD.unsqueeze(2)
    if readout == "mean":
        return x_LSNTD.mean(dim=0, keepdim=True).unsqueeze(2)
    if readout == "weighted":
        shares_SKL = learned[0][0].softmax(-1)
        x_LSNTD = x_LSNTD.expand(-1, len(shares_SKL), -1, -1, -1)
        # upstream's autocast leaves a weighted sum in float32; einsum would be a matrix product in bf16
        with torch.autocast(x_LSNTD.device.type, enabled=False):
            return torch.einsum("skl,lsntd->skntd", shares_SKL.float(), x_LSNTD).unsqueeze(0)
    weight, bias = (tensor[0] for tensor in learned)  # drop R, which is 1
    seeds, heads, width, _ = weight.shape
    slices, frames = x_LSNTD.shape[2:4]
    # [S, N * T, L * D], layer by layer, as upstream concatenates them
    beside = x_LSNTD.expand(-1, seeds, -1, -1, -1).permute(1, 2, 3, 0, 4).reshape(seeds, slices * frames, -1)
    out = _affine(weight.flatten(1, 2), beside, bias.flatten(1, 2))
    return out.unflatten(2, (heads, width)).movedim(2, 1).reshape(1, seeds, heads, slices, frames, width)


def _forward(weights: tuple[Tensor, ...], x_RSXNTD: Tensor, dropout_SRU: Tensor | None) -> Tensor:
    """Returns outputs [R, S, K, N, T, C]; `x` may have one seed for all."""
    first, bias = weights[:2]
    rows, seeds, heads, units, width = first.shape
    inputs, slices, frames = x_RSXNTD.shape[2:5]
    x_GND = x_RSXNTD.expand(rows, seeds, *x_RSXNTD.shape[2:]).reshape(rows * seeds * inputs, slices * frames, width)
    stacked = (len(x_GND), heads // inputs * units)
    out = _affine(first.reshape(*stacked, width), x_GND, bias.reshape(stacked))
    # out is [R * S * X, N * T, K / X * U]: rates that share an input are one wide product
    out = out.unflatten(2, (heads // inputs, units)).movedim(2, 1).reshape(rows, seeds, heads, slices * frames, units)
    if len(weights) == 4:
        hidden = torch.relu(out)
        if dropout_SRU is not None:
            hidden = hidden * dropout_SRU.to(hidden)[None, :, None]  # one mask for all layers and rates of a seed
        out = _affine(weights[2].flatten(0, 2), hidden.flatten(0, 2), weights[3].flatten(0, 2))
    return out.reshape(rows, seeds, heads, slices, frames, -1)


def _affine(weight_GMI: Tensor, x_GNI: Tensor, bias_GM: Tensor) -> Tensor:
    """Returns x W^T + bias, [G, N, M]; bf16 autocast rounds once, at the end, as torch's `Linear` does."""
    # weights are the left operand: the gradient of a narrow right operand is an order of magnitude slower
    if torch.is_autocast_enabled(x_GNI.device.type):
        operands = (bias_GM.unsqueeze(2), weight_GMI, x_GNI.transpose(1, 2))
        if _multiplies_bf16(x_GNI.device):
            return torch.baddbmm(*operands).transpose(1, 2)
        # Emulated bf16 products are up to a hundred times slower. Products of two bf16 numbers are exact in float32, so
        # this rounds the same values at the same places.
        with torch.autocast(x_GNI.device.type, enabled=False):
            return torch.baddbmm(*(x.bfloat16().float() for x in operands)).bfloat16().transpose(1, 2)
    return torch.bmm(weight_GMI, x_GNI.transpose(1, 2)).transpose(1, 2) + bias_GM.unsqueeze(1)


@cache
def _multiplies_bf16(device: torch.device) -> bool:
    return hardware_bf16(device).supported


@dataclass(frozen=True)
class Variants:
    """Equally likely feature rows of each slice; one is drawn every epoch."""

    rows_NV: Tensor  # rows; those beyond a slice's count are never drawn
    count_N: Tensor  # number of rows of each slice

    def drawn(self, name: str, seeds: Sequence[int], epoch: int, order_SN: Tensor) -> Tensor:
        """Returns the rows [S, N] of an epoch, in the order of each seed."""
        rows = []
        for seed, order_N in zip(seeds, order_SN, strict=True):
            share_N = _uniform((len(self.count_N),), "probe channel", name, seed, epoch).to(self.count_N.device)
            chosen_N = self.rows_NV.gather(1, (share_N * self.count_N).long().unsqueeze(1)).squeeze(1)
            rows.append(chosen_N[order_N])
        return torch.stack(rows)


def order(name: str, seed: int, epoch: int, slices: int) -> Tensor:
    """Returns the order of an epoch's slices, [N]."""
    return torch.randperm(slices, generator=_generator("probe order", name, seed, epoch))


def dropout_masks(name: str, fit: ProbeFit, rows: int, when: tuple[int, int]) -> Tensor | None:
    """Returns factors [S, rows, U], shared by the layers and rates of a seed; None without dropout."""
    if not fit.hidden or not fit.dropout:
        return None
    shares_SNU = torch.stack([_uniform((rows, fit.hidden), "probe dropout", name, s, *when) for s in fit.seeds])
    return (shares_SNU >= fit.dropout).float() / (1 - fit.dropout)


def _linear_weights(
    use: tuple[str, str, int], fit: ProbeFit, *, heads: tuple[int, int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Returns initial weight [*heads, *size] and bias [*heads, size[0]], as torch's `Linear` draws them.

    Args:
        use: key of the draws, beside the seed.
        heads: L, S, K.
    """

    def drawn(*dims: int) -> Tensor:
        # torch's default: uniform within 1 / sqrt(inputs), weights and bias
        draws = [(_uniform(dims, *use[:2], seed, use[2], len(dims)) * 2 - 1) / size[1] ** 0.5 for seed in fit.seeds]
        # equal for all rows and rates, but with separate memory: each head trains its own
        return torch.stack(draws).reshape(1, heads[1], 1, *dims).expand(*heads, *dims).contiguous()

    return drawn(*size), drawn(size[0])


def _uniform(dims: tuple[int, ...], *key: str | int) -> Tensor:
    return torch.rand(dims, generator=_generator(*key))


def _generator(*key: str | int) -> torch.Generator:
    # on the CPU, so that a GPU draws the same numbers
    return torch.Generator().manual_seed(torch_seed(*key))


def loss_of_heads(logits: Tensor, targets: Tensor, kind: TargetKind) -> Tensor:
    """Returns the mean loss of each head.

    Args:
        logits: [..., N, C] or [..., N, T, C].
        targets: class numbers [..., N] or [..., N, T], or floats in the shape of the logits; broadcast over heads.
            Frames of class -1 are ignored.
    """
    if kind == "frame_classes":
        counts = targets >= 0  # frames with a class
        log_p = logits.log_softmax(-1)
        # gather needs valid indices; `counts` removes the clamped ones
        chosen = log_p.gather(-1, targets.clamp(min=0).expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        return -(chosen * counts).sum((-2, -1)) / counts.sum((-2, -1)).clamp(min=1)
    if kind == "multiclass":
        chosen = logits.log_softmax(-1).gather(-1, targets.expand(logits.shape[:-1]).unsqueeze(-1))
        return -chosen.flatten(-2).mean(-1)
    if kind == "regression":
        error = (logits - targets).square()
    else:
        error = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, targets.expand(logits.shape), reduction="none"
        )
    # the dimensions of one split's targets: [N, C], or [N, T, C] for frames
    return error.flatten(start_dim=-3 if kind == "frames" else -2).mean(-1)


def pool_items(logits: Tensor, item_of_slice: Tensor, items: int) -> Tensor:
    """Averages the logits of the slices of each item: [..., N slices, T, C] -> [..., N items, T, C]."""
    if items == len(item_of_slice):
        return logits  # items are numbered in order of appearance, so one slice per item is the identity
    pooled = logits.new_zeros(*logits.shape[:-3], items, *logits.shape[-2:])
    pooled.index_add_(-3, item_of_slice, logits)
    counts = torch.bincount(item_of_slice, minlength=items)
    return pooled / counts.reshape(-1, 1, 1)


def as_outputs(logits: Tensor, kind: TargetKind) -> Tensor:
    """Drops the frame dimension of clip tasks: [..., N, 1, C] -> [..., N, C]."""
    return logits if kind in ("frames", "frame_classes") else logits.squeeze(-2)


def item_outputs(task: Task, logits: Tensor, item_of_slice: Tensor, items: int) -> Tensor:
    """Returns the outputs of items: [..., N slices, T, C] -> [..., N items, C] (or [..., N, T, C]).

    Pooling "probabilities" averages softmax outputs and returns their logarithm. "logits_bf16" rounds as autocast does
    upstream: logits and their mean to bf16, and the probabilities of tags too. Those are returned as log-odds, so that
    outputs with equal bf16 probabilities are tied.
    """
    if task.pooling == "probabilities":
        pooled = pool_items(logits.softmax(-1), item_of_slice, items).clamp_min(torch.finfo(logits.dtype).tiny).log()
    elif task.pooling == "logits_bf16":
        pooled = pool_items(logits.bfloat16().float(), item_of_slice, items).bfloat16()
        if task.target == "multilabel":
            odds = torch.logit(pooled.sigmoid().double())
            return as_outputs(odds.clamp(-_LARGEST_LOG_ODDS, _LARGEST_LOG_ODDS), task.target)
        pooled = pooled.float()
    else:
        pooled = pool_items(logits, item_of_slice, items)
    return as_outputs(pooled, task.target)
