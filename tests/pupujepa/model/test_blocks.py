from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from pupujepa.model.blocks import Attention, BlockShape, GeluMLP, SwiGLU
from tests.pupujepa.models import random_mel

SHAPE = BlockShape(width=32, heads=2)


def randomised(module):
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    return module


def test_qk_norm_agrees_with_plain_algebra():
    """Queries and keys of each head are normed over the head's dimensions, with weights that the heads share."""
    attention = randomised(Attention(replace(SHAPE, qk_norm=True)))
    x = random_mel(2, 7, 32)
    query, key, value = (part.unflatten(-1, (2, 16)).transpose(1, 2).double() for part in attention.qkv(x).chunk(3, -1))

    def normed(z, norm):
        z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return z * norm.weight.double() + norm.bias.double()

    scores = normed(query, attention.q_norm) @ normed(key, attention.k_norm).transpose(-1, -2) / 16**0.5
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    expected = functional.linear(mixed, attention.proj.weight.double(), attention.proj.bias.double())
    torch.testing.assert_close(attention(x, None).double(), expected, atol=1e-5, rtol=1e-5)


def test_qk_norm_bounds_the_scores():
    """The norm's weights bound the scores of attention, however large its inputs are."""
    attention = randomised(Attention(replace(SHAPE, qk_norm=True)))
    with torch.no_grad():
        attention.qkv.bias.zero_()
        query, key, _ = attention.project(random_mel(1, 9, 32), None)
        large_query, large_key, _ = attention.project(random_mel(1, 9, 32) * 1e4, None)
    torch.testing.assert_close(
        query @ key.transpose(-1, -2), large_query @ large_key.transpose(-1, -2), rtol=1e-2, atol=1e-2
    )


def test_qk_norm_keeps_one_dtype_under_autocast():
    """Norms compute in float32, but attention gets queries, keys and values of one dtype."""
    attention = randomised(Attention(replace(SHAPE, qk_norm=True)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {x.dtype for x in attention.project(random_mel(1, 9, 32), None)} == {torch.bfloat16}


@pytest.mark.parametrize("width", [128, 192, 1024])
def test_gelu_and_swiglu_have_equal_matrices(width):
    """Both MLPs have 12 D^2 weights; GELU has 2 D biases fewer, 0.065 % of a block at Tiny."""
    shape = BlockShape(width, 2)
    with torch.device("meta"):
        gated, plain = SwiGLU(shape), GeluMLP(replace(shape, mlp="gelu"))
    weights, biases = (
        [sum(p.numel() for p in mlp.parameters() if p.ndim == n) for mlp in (gated, plain)] for n in (2, 1)
    )
    assert weights == [12 * width**2] * 2
    assert biases[0] - biases[1] == 2 * width
    share_at_tiny = 2 * 192 / (16 * 192**2 + 17 * 192)
    assert share_at_tiny == pytest.approx(0.00065, abs=5e-6)


def test_gelu_agrees_with_the_error_function():
    """The plain MLP is fc2(x Phi(x)) with the exact normal distribution function."""
    mlp = randomised(GeluMLP(replace(SHAPE, mlp="gelu")))
    x = random_mel(1, 5, 32)
    hidden = mlp.fc1(x).double()
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = functional.linear(gelu, mlp.fc2.weight.double(), mlp.fc2.bias.double())
    torch.testing.assert_close(mlp(x).double(), expected, atol=1e-5, rtol=1e-5)
