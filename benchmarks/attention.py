"""bf16 attention on one CPU thread: our kernel against torch's fused one, seconds per call.

  python -m benchmarks attention

Shapes are those of our models: clips, heads, tokens, dimensions of a head.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.alternate import HEADER, alternate, machine
from pupujepa.model.softmax_attention import attend

PREDICTION = (
    "2.5x forward and backward at 512 tokens, because the products run on bf16 instructions and the scores stay in the "
    "second-level cache; less at 2,048, where a head's scores no longer fit and keys are read again for every piece."
)
SHAPES = {
    "demo teacher, student at inference": (8, 2, 512, 64),
    "demo student in training": (8, 2, 102, 64),
    "tiny teacher in training": (1, 3, 1638, 64),
    "tiny predictor": (1, 16, 2048, 32),
}


def main() -> None:
    """Prints the comparison as Markdown."""
    torch.set_num_threads(1)
    print(f"{machine()}\n\nprediction: {PREDICTION}\n\n{HEADER}")
    for name, (clips, heads, tokens, dims) in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        qkv = torch.randn(3, clips, tokens, heads, dims, generator=generator).bfloat16().transpose(2, 3)
        inputs = [x.contiguous().requires_grad_() for x in qkv]
        gradient = torch.randn(clips, heads, tokens, dims, generator=generator).bfloat16()
        for what, work in (("forward", _forward), ("forward and backward", partial(_both, gradient))):
            ours = partial(work, attend, inputs)
            peer = partial(work, functional.scaled_dot_product_attention, inputs)
            print(alternate(ours, peer, runs=15).row(f"{name} {clips} x {heads} x {tokens} x {dims}, {what}"))


@torch.no_grad()
def _forward(attention, inputs: list[Tensor]) -> None:
    attention(*inputs)


def _both(gradient: Tensor, attention, inputs: list[Tensor]) -> None:
    torch.autograd.grad(attention(*inputs), inputs, gradient)
