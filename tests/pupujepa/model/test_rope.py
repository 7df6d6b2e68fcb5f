import math

import pytest
import torch

from pupujepa.model.rope import (
    CLIP_RELATIVE,
    LENGTH_EXACT,
    Rotation,
    grid_rotation,
    rotate,
    select,
    sequence_rotation,
    time_positions,
)

CPU = torch.device("cpu")


def rotation(steps, *, mode=LENGTH_EXACT, reference_steps=256, bands=8, head_dim=16):
    return grid_rotation(steps, bands, head_dim=head_dim, reference_steps=reference_steps, mode=mode, device=CPU)


def test_modes_agree_at_the_training_length():
    """At 256 steps the length-exact positions are the released ones."""
    exact = time_positions(256, reference_steps=256, mode=LENGTH_EXACT, device=CPU)
    released = time_positions(256, reference_steps=256, mode=CLIP_RELATIVE, device=CPU)
    torch.testing.assert_close(exact, released, atol=1e-15, rtol=1e-12)
    torch.testing.assert_close(rotation(256), rotation(256, mode=CLIP_RELATIVE), atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 100, 256, 1000])
def test_length_exact_spacing_never_changes(steps):
    """Neighbouring steps are 2 / 255 apart at any length, centred on 0; clip-relative ones are stretched."""
    exact = time_positions(steps, reference_steps=256, mode=LENGTH_EXACT, device=CPU)
    torch.testing.assert_close(exact.diff(), torch.full((steps - 1,), 2 / 255, dtype=torch.float64))
    assert exact.sum().abs() < 1e-9
    if steps > 1:
        stretched = time_positions(steps, reference_steps=256, mode=CLIP_RELATIVE, device=CPU)
        assert stretched[0] == -1
        assert stretched[-1] == 1


def test_scores_depend_on_distance_only():
    """Length-exact attention scores between two tokens do not depend on their place in time or the clip's length."""
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def score(steps, first, second):
        cos, sin = rotation(steps)
        one, two = (Rotation(cos[i].double(), sin[i].double()) for i in (first * 8 + 3, second * 8 + 5))
        return (rotate(q, one).double() @ rotate(k, two).double()).item()

    expected = score(256, 10, 17)
    for steps, first in ((256, 100), (256, 249 - 7), (40, 3), (1000, 900)):
        assert score(steps, first, first + 7) == pytest.approx(expected, abs=1e-5)


def test_frequencies_run_from_1_to_112_pi():
    """The slowest angle is pi times the position and the fastest 112 pi, on both axes."""
    cos, sin = rotation(256, head_dim=64)
    last = torch.atan2(sin, cos)[-1]  # position 1 on both axes
    for half in (last[:16], last[16:]):
        assert abs(half[0]) == pytest.approx(math.pi, abs=1e-5)
        assert half[-1].cos() == pytest.approx(math.cos(112 * math.pi), abs=1e-5)
    assert math.pi * 2 ** (math.log2(224) - 1) == pytest.approx(112 * math.pi)


def test_first_half_is_time_second_half_is_frequency():
    """Along time only the first half of the pairs rotates, along frequency only the second."""
    cos, _ = rotation(256)
    grid = cos.unflatten(0, (256, 8))
    assert torch.equal(grid[:, 2, 4:], grid[:1, 2, 4:].expand(256, -1))
    assert torch.equal(grid[5, :, :4], grid[5, :1, :4].expand(8, -1))


def test_rotation_keeps_lengths_and_pairs_neighbours():
    """Rotation is orthogonal and mixes dimensions 2i and 2i + 1 only."""
    x = torch.eye(16).expand(2, 3, 16, 16)
    turn = select(rotation(32), torch.arange(16).expand(2, -1))
    turned = rotate(x, turn)
    torch.testing.assert_close(turned.norm(dim=-1), torch.ones(2, 3, 16))
    blocks = torch.block_diag(*[torch.ones(2, 2)] * 8).bool()
    assert not turned[..., ~blocks].any()


def test_bfloat16_is_rotated_in_float32():
    """A bf16 input is rounded once, at the end."""
    x = torch.randn(1, 1, 8, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    turn = select(rotation(1), torch.arange(8)[None])
    assert torch.equal(rotate(x, turn), rotate(x.float(), turn).bfloat16())


def line(steps, *, mode=LENGTH_EXACT, reference_steps=256, head_dim=16):
    places = torch.arange(steps)
    return sequence_rotation(places, head_dim=head_dim, reference_length=reference_steps, mode=mode, device=CPU)


def test_on_a_line_all_pairs_turn_with_time():
    """In a sequence each of head_dim / 2 pairs has its own frequency, over the same range as in 2-D."""
    cos, sin = line(256, head_dim=64)
    assert cos.shape == (256, 32)
    last = torch.atan2(sin, cos)[-1]  # position 1
    assert abs(last[0]) == pytest.approx(math.pi, abs=1e-5)
    assert last[-1].cos() == pytest.approx(math.cos(112 * math.pi), abs=1e-5)
    steps = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for pair in range(32):
        frequency = math.pi * 2 ** (pair / 31 * (math.log2(224) - 1))
        torch.testing.assert_close(cos[:, pair], (steps * frequency).cos().float(), atol=1e-6, rtol=0)
        torch.testing.assert_close(sin[:, pair], (steps * frequency).sin().float(), atol=1e-6, rtol=0)


def test_on_a_line_length_exact_scores_depend_on_distance_only():
    """A sequence too is shift-invariant at any length; the clip-relative formula stretches short clips."""
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def score(steps, first, second, mode=LENGTH_EXACT):
        cos, sin = line(steps, mode=mode)
        one, two = (Rotation(cos[i].double(), sin[i].double()) for i in (first, second))
        return (rotate(q, one).double() @ rotate(k, two).double()).item()

    expected = score(256, 10, 17)
    for steps, first in ((256, 100), (40, 3), (1000, 900)):
        assert score(steps, first, first + 7) == pytest.approx(expected, abs=1e-5)
    assert score(256, 10, 17, CLIP_RELATIVE) == pytest.approx(expected, abs=1e-5)
    assert score(40, 3, 10, CLIP_RELATIVE) != pytest.approx(expected, abs=1e-2)
