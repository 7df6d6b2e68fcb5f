"""The probe benchmark: both of its sides, on a grid of a few probes."""

import pytest

from benchmarks.probe import bank_of_all, make_grid, one_by_one, parse


def test_both_sides_choose_and_test_a_probe(tmp_path):
    """Both train the whole grid and read the test split once; their scores agree to one item of four.

    That the probes themselves agree to 1e-5 is tested with the bank.
    """
    grid = make_grid(parse(["--tracks", "12", "--epochs", "1", "--depth", "1", "--width", "16"]), tmp_path)
    assert [place.readout for place in grid.rows] == ["layers", "layers", "mean", "weighted", "reduced"]
    assert [len(of_slices.values) for _, of_slices, _ in grid.audio.values()] == [12, 4, 4]
    ours, peer = bank_of_all(grid), one_by_one(grid)
    assert ours.valid == pytest.approx(peer.valid, abs=0.25)
    assert ours.test == pytest.approx(peer.test, abs=0.25)
