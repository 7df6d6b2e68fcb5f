"""Attention in bf16 on the CPU is torch's attention, whole or in pieces, forward and backward."""

import pytest
import torch
from torch.nn import functional

from pupujepa.model import softmax_attention
from pupujepa.model.softmax_attention import attend


def random_inputs(queries: int, keys: int, dtype: torch.dtype, *, size: float = 1) -> list[torch.Tensor]:
    """Returns queries, scaled keys and values of 2 clips and 3 heads of 16 dimensions, laid out as one projection."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, n, 3, 16, generator=generator) for n in (queries, keys, keys)]
    return [(x * s).to(dtype).transpose(1, 2).requires_grad_() for x, s in zip(drawn, (size, size, 1), strict=True)]


@pytest.mark.parametrize("cells", [1 << 20, 5000, 600, 1], ids=["whole", "a head", "some queries", "one query"])
@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (7, 33)])
def test_bf16_on_the_cpu_agrees_with_torch_in_float32(monkeypatch, cells, queries, keys):
    """Output and gradients are within bf16's rounding for any cut of the scores; torch's kernel is not called."""
    bf16 = random_inputs(queries, keys, torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in bf16]
    expected = functional.scaled_dot_product_attention(*exact)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(softmax_attention, "SCORES_IN_CACHE", cells)
    with monkeypatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", None)
        mixed = attend(*bf16)
    assert mixed.dtype == torch.bfloat16 and mixed.shape == expected.shape
    torch.testing.assert_close(mixed.float(), expected, atol=0.02, rtol=0.02)
    ours = torch.autograd.grad(mixed, bf16, gradient.bfloat16())
    theirs = torch.autograd.grad(expected, exact, gradient)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got.float(), wanted, atol=0.05, rtol=0.05)


def test_elsewhere_it_is_torchs_attention_to_the_bit():
    """In float32, and at inference in any other type, the result is torch's."""
    exact = random_inputs(5, 9, torch.float32)
    assert torch.equal(attend(*exact), functional.scaled_dot_product_attention(*exact))
    half = [x.detach().half() for x in exact]
    assert torch.equal(attend(*half), functional.scaled_dot_product_attention(*half))


@pytest.mark.parametrize("size", [1e-3, 3, 10, 300, 1e8])
def test_scores_of_any_size_give_finite_weights_and_gradients(size):
    """From nearly even weights to all of the weight on one key, with and without the search for the largest score."""
    bf16 = random_inputs(64, 64, torch.bfloat16, size=size)
    exact = [x.detach().float().requires_grad_() for x in bf16]
    expected = functional.scaled_dot_product_attention(*exact)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    mixed = attend(*bf16)
    assert _off(mixed, expected) < 0.02 + 0.02 * min(size, 10)
    ours = torch.autograd.grad(mixed, bf16, gradient.bfloat16())
    assert all(x.isfinite().all() for x in ours)
    theirs = torch.autograd.grad(expected, exact, gradient)
    assert _off(ours[2], theirs[2]) < 0.02 + 0.02 * min(size, 10)


def _off(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Returns the relative error; bf16 rounds scores of hundreds by whole units."""
    return float((got.detach().float() - wanted.detach()).norm() / wanted.detach().norm())


def test_a_row_without_a_number_comes_out_without_one():
    """The shortcut for safe scores does not hide NaN."""
    bf16 = random_inputs(4, 4, torch.bfloat16)
    bf16[0].data[0, 0, 1] = torch.nan
    mixed = attend(*bf16)
    assert mixed[0, 0, 1].isnan().all() and mixed.isnan().sum() == mixed.shape[-1]


def test_no_weights_are_kept_for_the_backward_pass():
    """Autograd holds the three inputs, the output and one number per query, for any number of weights."""
    kept: list[int] = []
    inputs = random_inputs(64, 64, torch.bfloat16)
    rows = inputs[0].numel() // inputs[0].shape[-1]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        attend(*inputs)
    assert sorted(kept) == [rows, *[inputs[0].numel()] * 4]
