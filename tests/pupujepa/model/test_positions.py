import math
from dataclasses import replace

import pytest
import torch

from pupujepa.errors import UserError
from pupujepa.model.model import PupuJEPA
from pupujepa.model.positions import AbsolutePositions, absolute_positions, sincos_positions
from tests.pupujepa.models import SMALL, random_mel, random_model

LEARNED = replace(SMALL, position_code="learned")
SINCOS = replace(SMALL, position_code="sincos")


def waves(number: int, width: int) -> list[float]:
    angles = [number / 10000 ** (i / (width // 2)) for i in range(width // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


@pytest.mark.parametrize("bands", [1, 4])
def test_sincos_agrees_with_the_formula(bands):
    """Step and band each have half of the width; a single band leaves all of it to the step."""
    for index in (0, 3, 4, 1023):
        step, band = divmod(index, bands)
        expected = waves(step, 32) if bands == 1 else waves(step, 16) + waves(band, 16)
        got = sincos_positions(torch.tensor([[index]]), bands=bands, width=32)
        torch.testing.assert_close(got[0, 0], torch.tensor(expected), atol=2e-4, rtol=0)


def test_only_absolute_codes_have_positions():
    """Rotary models and models without positions hold none; sincos has no parameters."""
    assert absolute_positions(SMALL, 32) is None
    assert absolute_positions(replace(SMALL, position_code="none"), 32) is None
    assert list(AbsolutePositions(SINCOS, 32).parameters()) == []
    assert AbsolutePositions(LEARNED, 32).position_table.shape == (128, 32)


def test_chosen_tokens_get_the_positions_of_the_grid():
    """Positions by index are those that the whole grid gets; clips shorter than a crop use the first."""
    for config in (LEARNED, SINCOS):
        positions = random_model(config).student.positions
        zeros = torch.zeros(2, 128, 32)
        index = torch.tensor([[5, 77], [127, 0]])
        on_grid = positions.added_to_grid(zeros)
        assert torch.equal(positions(index), torch.stack([on_grid[0, [5, 77]], on_grid[1, [127, 0]]]))
        assert torch.equal(positions.added_to_grid(zeros[:, :40]), on_grid[:, :40])


def test_learned_tables_start_small_and_different():
    """Student and predictor draw their tables with std 0.02 from separate streams; the teacher's is a copy."""
    model = PupuJEPA(LEARNED, seed=4)
    student, predictor = model.student.positions.position_table, model.predictor.positions.position_table
    assert student.std().item() == pytest.approx(0.02, rel=0.05)
    assert predictor.std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(student[:, :16], predictor)
    assert torch.equal(model.teacher.positions.position_table, student)
    assert not model.teacher.positions.position_table.requires_grad


def test_learned_positions_end_with_the_crop():
    """A clip longer than a training crop is an error with a remedy for learned positions, and allowed for sincos."""
    mel = random_mel(1, 68, 128)
    with pytest.raises(UserError, match=r"136 patches is longer than the 128 learned positions.*encode it in windows"):
        random_model(LEARNED).encode(mel)
    assert random_model(SINCOS).encode(mel, layers=[-1])[0].shape == (1, 136, 32)


def test_without_positions_order_means_nothing():
    """Without positions, swapping two patches swaps their features and changes no other; with them it changes more."""
    mel = random_mel(1, 64, 128)
    swapped = mel.clone()
    swapped[:, 0:4], swapped[:, 8:12] = mel[:, 8:12], mel[:, 0:4]
    order = torch.arange(128)
    order[0:8], order[16:24] = torch.arange(16, 24), torch.arange(8)
    for code, alike in (("none", True), ("rotary", False), ("learned", False), ("sincos", False)):
        model = random_model(replace(SMALL, position_code=code))
        with torch.no_grad():
            before, after = (model.encode(x, layers=[-1])[0] for x in (mel, swapped))
        assert torch.allclose(before[:, order], after, atol=1e-5) is alike, code
