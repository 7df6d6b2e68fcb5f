"""Heads of a bank: the readout of layers, then linear or MLP heads, for all heads at once.

Readout "layers" has a head for each layer alone. The others have one head for all layers: "mean", "weighted" (a sum
with learned softmax weights) and "reduced" (a learned linear map of all layers side by side to the width of one,
MARBLE's `MLPReduce`). A readout is trained together with its head.

Legend: L layers, R rows of heads (the layers, or one), S seeds, K learning rates, X = 1 where the rates share an input
and K where they do not, N slices, T frames, D width, U hidden units, C outputs.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from distributed.marble.probes.draws import initial_mixing, initial_weights
from distributed.marble.tasks.tasks import ProbeFit, Readout
from pupujepa.precision import hardware_bf16

_MIXING_TENSORS: dict[Readout, int] = {"layers": 0, "mean": 0, "weighted": 1, "reduced": 2}


@dataclass(frozen=True)
class Heads:
    """Probes of one readout.

    Attributes:
        of_layers: layers that it reads.
        weights: tensors of the readout, then one or two (weight, bias) pairs; all start with [R, S, K].
    """

    readout: Readout
    of_layers: range
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
    """Returns untrained heads.

    Args:
        name: key of the random draws.
        sizes: width of the features and number of outputs.
    """
    rows = len(of_layers) if readout == "layers" else 1
    shape = (rows, len(fit.seeds), len(fit.learning_rates))
    mixing = initial_mixing(name, fit, readout, sizes=(len(of_layers), sizes[0]))
    return Heads(readout, of_layers, (*mixing, *initial_weights(name, fit, shape, sizes)))


def numbers_of(fit: ProbeFit, readout: Readout, *, layers: int, sizes: tuple[int, int]) -> int:
    """Returns the approximate number of weights in a row of heads: its first matrices have nearly all."""
    width, outputs = sizes
    heads = len(fit.seeds) * len(fit.learning_rates)
    reduction = layers * width * width if readout == "reduced" else 0
    return heads * ((fit.hidden or outputs) * width + reduction)


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
    """Returns x W^T + bias, [G, N, M]; bf16 autocast rounds once, at the end, as torch's `Linear` does.

    Weights are the left operand: the gradient of a narrow right operand is an order of magnitude slower.
    """
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
