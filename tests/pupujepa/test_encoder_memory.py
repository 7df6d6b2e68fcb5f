"""Memory of encoding, measured from outside: the resident set of a fresh process."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from benchmarks.memory import GIB, arithmetic, measure
from pupujepa.cost.cost import model_size

# a clip of up to five minutes is held as mono audio of 24 kHz until its true length is known
HELD_PER_S = 24_000 * 4


@pytest.mark.parametrize(("readout", "growth_per_s"), [("mean", HELD_PER_S), ("frames", HELD_PER_S + 25 * 8 * 128 * 4)])
def test_memory_does_not_grow_with_the_length(readout, growth_per_s):
    """A file three times as long needs only the memory of its frames, 0.1 MB a second, and of its mono audio, 0.1 MB.

    Held whole, a second would be 0.7 MB (stereo at 44.1 kHz, its mono mix and its resampling) and as much as the frames
    once more for the windows of overlapping halves.
    """
    with ThreadPoolExecutor(2) as users:  # each waits for a process
        measured = users.map(partial(measure, "demo", readout=readout, batch_size=4), (60, 180))
        short, long = (memory.above_weights for memory in measured)
    slack = 24 * 2**20  # what the allocator may keep; 120 s held whole would be 82 MB
    assert long - short < 120 * growth_per_s + slack


def test_arithmetic_names_what_large_needs():
    """The prediction for ten minutes of Large is below 4 GiB, and grows with the arguments as documented."""
    large = model_size("large")
    expected = {size: arithmetic(large, 600, readout="frames", batch_size=size) for size in (1, 8, 64)}
    assert expected[1] < expected[8] < 4 * GIB < expected[64]
    mean = arithmetic(large, 600, readout="mean", batch_size=8)
    assert expected[8] - mean == 15_000 * 8192 * 4
    assert arithmetic(large, 6000, readout="mean", batch_size=8) == mean
