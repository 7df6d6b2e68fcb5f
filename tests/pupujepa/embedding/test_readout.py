import pytest
import torch
from torch.nn import functional

from pupujepa.embedding.readout import ReadoutSpec, RunningReadout, layout, parse_readout, pool_region
from pupujepa.errors import UserError
from tests.pupujepa.models import random_mel


def test_frames_put_the_bands_side_by_side():
    """Element [t, f * D + d] of the layout is dimension d of token t * bands + f."""
    states = torch.arange(2 * 12 * 3).reshape(2, 12, 3)
    frames = layout(states, bands=4)
    assert frames.shape == (2, 3, 12)
    assert torch.equal(frames[1, 2, 3:6], states[1, 2 * 4 + 1])


@pytest.mark.parametrize(("f", "t"), [(1, 1), (4, 2), (8, 3), (3, 5)])
def test_regions_are_adaptive_averages(f, t):
    """region(f, t) is the mean over each block, frequency-major, also if blocks do not divide the grid."""
    states = random_mel(2, 10 * 8, 5)
    pooled = pool_region(states, bands=8, frequency_blocks=f, time_blocks=t)
    grid = states.unflatten(1, (10, 8)).permute(0, 3, 2, 1)
    expected = functional.adaptive_avg_pool2d(grid, (f, t)).permute(0, 2, 3, 1).flatten(1)
    assert pooled.shape == (2, f * t * 5)
    torch.testing.assert_close(pooled, expected)
    if (f, t) == (1, 1):
        torch.testing.assert_close(pooled, states.mean(1))


@pytest.mark.parametrize("readout", ["frames", "mean", "region:4x2", "region:3x5"])
@pytest.mark.parametrize("pieces", [[10], [1, 3, 6], [1] * 10])
def test_running_readouts_equal_the_whole(readout, pieces):
    """The readout of a clip in pieces equals that of the whole grid, for any cut."""
    states = random_mel(2, 10 * 8, 5)  # two layers
    spec = parse_readout(readout, bands=8)
    running = RunningReadout(spec, steps=10, bands=8, layers=2, width=5)
    for piece in states.unflatten(1, (10, 8)).split(pieces, dim=1):
        running.add(piece)
    if readout == "frames":
        expected = layout(states, bands=8)
    elif readout == "mean":
        expected = states.mean(1)
    else:
        expected = pool_region(states, bands=8, frequency_blocks=spec.frequency_blocks, time_blocks=spec.time_blocks)
    torch.testing.assert_close(running.finish(), expected)


def test_readouts_are_parsed():
    """Tuple and text name the same region, and a spec prints as the text."""
    assert parse_readout(("region", 4, 2), bands=8) == parse_readout("region:4x2", bands=8)
    assert str(ReadoutSpec("region", 4, 2)) == "region:4x2"
    assert str(parse_readout("mean", bands=8)) == "mean"


@pytest.mark.parametrize(
    ("readout", "message"),
    [
        ("median", "readout 'median' is unknown"),
        ("region:4", "not of the form region:FxT"),
        ("region:9x1", "needs 1 to 8 blocks along frequency"),
        (("region", 2, 0), "at least one along time"),
    ],
)
def test_unknown_readouts_are_refused(readout, message):
    """Unknown readouts are errors that list the known ones."""
    with pytest.raises(UserError, match=message):
        parse_readout(readout, bands=8)
