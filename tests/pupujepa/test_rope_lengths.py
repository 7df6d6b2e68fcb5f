"""Length-exact positions in the whole model: the released ones at 256 steps, and shift-invariant at any length."""

from dataclasses import replace

import pytest
import torch

from pupujepa.model.model import PupuJEPA, encoder_rotation, predictor_rotation, visible_to
from pupujepa.model.rope import CLIP_RELATIVE, LENGTH_EXACT, grid_rotation
from tests.pupujepa.models import SMALL, random_mel, random_model

LONG = replace(SMALL, crop_frames=1024)  # a grid of 256 steps, as released
BANDS = 8


@torch.no_grad()
def run(model: PupuJEPA, tokens, index, *, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns student and predictor outputs for tokens at `index` of a grid of `steps`, with every third hidden."""
    hidden = torch.arange(index.shape[1]) % 3 == 0
    turn = encoder_rotation(model.config, steps, tokens.device)
    grid = torch.zeros(1, steps * BANDS, model.config.width)
    grid[:, index[0]] = tokens
    context = index[:, ~hidden]
    seen = model.student(*visible_to(model.student, grid, context, turn))
    sequence = torch.cat([context, index[:, hidden]], 1)
    return seen, model.predictor(seen, sequence, predictor_rotation(model.config, steps, sequence))


def stretch(first_step: int, steps: int) -> torch.Tensor:
    """Returns token indices [1, steps * bands] of consecutive steps."""
    return torch.arange(first_step * BANDS, (first_step + steps) * BANDS)[None]


def test_at_the_training_length_the_modes_are_one():
    """At 256 steps the released formula and ours give equal features, at any other length different ones."""
    exact, released = (random_model(replace(LONG, rope=mode)) for mode in (LENGTH_EXACT, CLIP_RELATIVE))
    for frames, same in ((1024, True), (1020, False), (400, False), (1400, False)):
        mel = random_mel(1, frames, 128)
        with torch.no_grad():
            gap = (exact.encode(mel, layers=[-1])[0] - released.encode(mel, layers=[-1])[0]).abs().max()
        assert (gap < 1e-5) == same


@pytest.mark.parametrize(("mode", "invariant"), [(LENGTH_EXACT, True), (CLIP_RELATIVE, False)])
@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize(("first", "whole"), [(0, 256), (156, 256), (31, 300), (4000, 5000)])
def test_where_a_stretch_lies_does_not_matter(mode, invariant, steps, first, whole):
    """Outputs for the same tokens at the start, at the end, in a longer grid, or alone are equal.

    With positions relative to the clip they do, wherever there is more than one step.
    """
    model = random_model(replace(LONG, rope=mode))
    tokens = random_mel(1, steps * BANDS, LONG.width)
    alone = run(model, tokens, stretch(0, steps), steps=steps)
    inside = run(model, tokens, stretch(first, steps), steps=whole)
    for one, other in zip(alone, inside, strict=True):
        assert ((one - other).abs().max() < 1e-5) == (invariant or steps == 1)


@pytest.mark.parametrize("steps", [2, 255, 256, 257, 1000, 90_000])
def test_neighbours_are_as_far_apart_at_any_length(steps):
    """From two steps to an hour, the rotation between steps is that of the training crop, to float32."""
    turns = []
    for length in (256, steps):
        cos, sin = grid_rotation(
            length, 1, head_dim=64, reference_steps=256, mode=LENGTH_EXACT, device=torch.device("cpu")
        )
        angles = torch.complex(cos[:, :16].double(), sin[:, :16].double())  # the half that turns with time
        turns.append(angles[1:] * angles[:-1].conj())
    expected = turns[0][:1].expand(steps - 1, -1)
    assert (turns[1] - expected).abs().max() < 1e-6
