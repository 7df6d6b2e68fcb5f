"""Masks of a batch against a loop over samples with attempts on tensors: seconds for 256 masks.

  python -m benchmarks masks

The peer follows the same rules in the style of the release: on torch tensors, it fetches every random number and every
count as a Python number, and adds shapes until the count is reached. It takes its numbers from torch's
global generator; ours derives a generator for each sample from (seed, epoch, uid, draw), which is part of its time.
Both run on one thread of the CPU, the grid is the released one of 256 x 8 patches.
"""

import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.alternate import HEADER, alternate, machine
from pupujepa.randomness import generator
from pupujepa.training.masks import STRATEGIES, Mask, MaskConfig, draw_mask

STEPS, BANDS, RATIO = 256, 8, 0.8
MAX_SHAPES = 150
AIM_MS = 0.1
PREDICTION = (
    "random 2x (one call of torch sorts the whole batch, but 2,048 numbers a sample, where ours moves 1,638); "
    "time_frequency 20x (30 shapes of a dozen tensor calls each), block 30x (100 shapes); ours below 0.1 ms each."
)


def main(*, batch_size: int = 256, runs: int = 7) -> None:
    """Prints the comparison as Markdown, and our time per mask."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    peers: tuple[Callable[[int], tuple[Tensor, Tensor]], ...] = (loop_random, loop_blocks, loop_stripes)
    rows, per_mask = [], []
    for strategy, (name, peer) in enumerate(zip(STRATEGIES, peers, strict=True)):
        for balanced in (False, True) if name != "random" else (False,):
            config = MaskConfig(ratio=RATIO, balanced=balanced)
            label = f"{name}{', balanced (peer: released rules)' if balanced else ''}, {batch_size} masks"
            compared = alternate(
                lambda c=config, s=strategy: keyed_masks(c, batch_size, strategy=s),  # type: ignore[misc]
                lambda p=peer: p(batch_size),  # type: ignore[misc]
                runs=runs,
            )
            rows.append(compared.row(label))
            ours_ms = statistics.median(compared.ours_s) / batch_size * 1e3
            per_mask.append(f"- {label}: {ours_ms:.3f} ms per mask (aim: below {AIM_MS})")
    print(f"{machine()}\n\nprediction: {PREDICTION}\n\n{HEADER}\n" + "\n".join(rows) + "\n\n" + "\n".join(per_mask))


def keyed_masks(config: MaskConfig, batch_size: int, *, strategy: int) -> list[Mask]:
    """Draws our masks of a batch, each from its own key, as the stream does."""
    return [
        draw_mask(
            generator(0, 0, f"uid-{row}", 0, "mask"), config, steps=STEPS, bands=BANDS, progress=1.0, strategy=strategy
        )
        for row in range(batch_size)
    ]


def loop_random(batch_size: int) -> tuple[Tensor, Tensor]:
    """Returns context and target of a batch: a random order of all patches, cut in two."""
    order_BN = torch.rand(batch_size, STEPS * BANDS).argsort(dim=1)
    kept = round(STEPS * BANDS * (1 - RATIO))
    return order_BN[:, :kept], order_BN[:, kept:]


def loop_blocks(batch_size: int) -> tuple[Tensor, Tensor]:
    """Returns context and target of a batch by rectangles."""

    def next_block(lacking: int) -> tuple[slice, slice]:
        low, high = (2.0, 5.0) if uniform() < 0.5 else (0.2, 0.5)
        stretch = math.sqrt(low + uniform() * (high - low))
        side = math.sqrt(min((0.01 + uniform() * 0.04) * STEPS * BANDS, lacking))
        return span(int(side * stretch), STEPS), span(int(side / stretch), BANDS)

    return stacked([laid(next_block) for _ in range(batch_size)])


def loop_stripes(batch_size: int) -> tuple[Tensor, Tensor]:
    """Returns context and target of a batch by time spans and bands."""

    def next_stripe(lacking: int) -> tuple[slice, slice]:
        if uniform() >= STEPS / (STEPS + BANDS):
            return slice(0, STEPS), span(1, BANDS)
        longest = int(torch.randint(1, 41, (1,)).item())
        return span(longest if longest * BANDS <= lacking else lacking // BANDS, STEPS), slice(0, BANDS)

    return stacked([laid(next_stripe) for _ in range(batch_size)])


def uniform() -> float:
    """Returns a number in [0, 1) from the global generator."""
    return torch.rand(1).item()


def span(length: int, along: int) -> slice:
    """Returns a span of at least one patch anywhere on an axis."""
    length = min(max(length, 1), along)
    start = int(torch.randint(0, along - length + 1, (1,)).item())
    return slice(start, start + length)


def laid(next_shape: Callable[[int], tuple[slice, slice]]) -> Tensor:
    """Returns one mask [STEPS * BANDS]: shapes until one exceeds the missing count, the rest at random."""
    hidden = torch.zeros(STEPS, BANDS, dtype=torch.bool)
    lacking = STEPS * BANDS - round(STEPS * BANDS * (1 - RATIO))
    for _ in range(MAX_SHAPES):
        down, across = next_shape(lacking)
        patches = hidden[down, across]
        new = patches.numel() - int(patches.sum().item())
        if new > lacking:
            break
        hidden[down, across] = True
        lacking -= new
        if lacking == 0:
            break
    flat = hidden.flatten()
    free = torch.nonzero(~flat).squeeze(1)
    flat[free[torch.randperm(len(free))[:lacking]]] = True
    return flat


def stacked(masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns indices of the visible and of the hidden patches, one row per sample."""
    return (
        torch.stack([torch.nonzero(~flat).squeeze(1) for flat in masks]),
        torch.stack([torch.nonzero(flat).squeeze(1) for flat in masks]),
    )
