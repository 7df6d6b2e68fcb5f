"""Rotary positions of a patch grid or of a sequence (no parameters).

Angles are position * pi * 2^linspace(0, log2(224) - 1, head_dim / 4): 1 to 112 times pi. The first half of a head's
dimensions rotates with time, the second half with frequency; even and odd neighbours form the pairs.

Two formulas for the time axis:

- ``clip_relative``, the released one: linspace(-1, 1, n). Positions are relative to the clip, so a clip of another
  length than the training crops is silently stretched.
- ``length_exact``: (i - (n - 1) / 2) * 2 / (n_ref - 1), with n_ref the steps of a training crop. It is identical at
  n = n_ref, and keeps the distance of neighbours at any other length. Attention depends on differences only, so the
  origin does not matter.

The frequency axis always has all its bands: linspace(-1, 1, bands). A sequence has one axis: all pairs rotate with the
place, by head_dim / 2 frequencies over the same range; n and n_ref count its tokens.

Shapes: B batch, N patches, K chosen patches, H heads, D dimensions of a head, R rotated pairs of a head (head_dim / 2).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

LENGTH_EXACT = "length_exact"
CLIP_RELATIVE = "clip_relative"
ROPE_MODES = (LENGTH_EXACT, CLIP_RELATIVE)
_MAX_FREQUENCY = 224  # the released code's constant, a ViT's image size


class Rotation(NamedTuple):
    """Cosines and sines of the angles: [N, R] for a whole grid, [B, 1, K, R] for a chosen subset of it."""

    cos: Tensor
    sin: Tensor


def grid_rotation(
    steps: int, bands: int, *, head_dim: int, reference_steps: int, mode: str, device: torch.device
) -> Rotation:
    """Returns the rotation of a grid's patches, time-major: two tensors [steps * bands, R].

    It is computed anew for each call, in microseconds. An engine may cast buffers to bf16 with the parameters, which
    would move angles of up to 350 rad by a whole radian.
    """
    where = _exact_device(device)
    frequencies = _frequencies(head_dim // 4, where)
    time = time_positions(steps, reference_steps=reference_steps, mode=mode, device=where)
    band = torch.linspace(-1, 1, bands, dtype=torch.float64, device=where)
    angle_of_time = (time[:, None] * frequencies)[:, None].expand(-1, bands, -1)
    angle_of_band = (band[:, None] * frequencies)[None].expand(steps, -1, -1)
    angle_NR = torch.cat([angle_of_time, angle_of_band], dim=-1).reshape(steps * bands, -1)
    return _rotation_by(angle_NR, device)


def sequence_rotation(
    places_N: Tensor, *, head_dim: int, reference_length: int, mode: str, device: torch.device
) -> Rotation:
    """Returns the rotation of every token by its place in a sequence: two tensors [N, R].

    Args:
        places_N: place of each token, int64; a permutation of 0 to N - 1.
        reference_length: tokens of a training crop.
    """
    where = _exact_device(device)
    line_N = time_positions(len(places_N), reference_steps=reference_length, mode=mode, device=where)
    return _rotation_by(line_N[places_N.to(where), None] * _frequencies(head_dim // 2, where), device)


def time_positions(steps: int, *, reference_steps: int, mode: str, device: torch.device) -> Tensor:
    """Returns the positions [steps] of the time axis, float64."""
    if mode == CLIP_RELATIVE:
        return torch.linspace(-1, 1, steps, dtype=torch.float64, device=device)
    index = torch.arange(steps, dtype=torch.float64, device=device)
    return (index - (steps - 1) / 2) * 2 / max(reference_steps - 1, 1)  # centred on 0


def select(rotation: Rotation, index_BK: Tensor) -> Rotation:
    """Returns the rotation of chosen patches at their original positions: two tensors [B, 1, K, R]."""
    return Rotation(rotation.cos[index_BK].unsqueeze(1), rotation.sin[index_BK].unsqueeze(1))  # broadcast over heads


def rotate(x_BHND: Tensor, rotation: Rotation) -> Tensor:
    """Rotates each (even, odd) pair of the last axis [B, H, N, 2 R] in float32; keeps the dtype."""
    if x_BHND.device.type == "cpu" and not torch.compiler.is_compiling():
        return _ComplexRotation.apply(x_BHND, rotation.cos, rotation.sin)
    even, odd = x_BHND.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x_BHND.dtype)


class _ComplexRotation(torch.autograd.Function):
    """The rotation as a complex product: a third of the time on a CPU, but not for torch.compile."""

    @staticmethod
    def forward(ctx: Any, x_BHND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x_BHND, torch.complex(cos, sin))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], torch.complex(cos, -sin)), None, None  # the inverse rotation


def _turned(x_BHND: Tensor, by: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x_BHND.float().contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by).flatten(-2).to(x_BHND.dtype)


def _exact_device(device: torch.device) -> torch.device:
    # angles reach 350 rad, where float32 resolves only 3e-5, so they are computed in float64, which MPS lacks
    return torch.device("cpu") if device.type == "mps" else device


def _frequencies(count: int, device: torch.device) -> Tensor:
    exponents = torch.linspace(0, math.log2(_MAX_FREQUENCY) - 1, count, dtype=torch.float64, device=device)
    return math.pi * 2.0**exponents


def _rotation_by(angle_NR: Tensor, device: torch.device) -> Rotation:
    return Rotation(angle_NR.cos().float().to(device), angle_NR.sin().float().to(device))
