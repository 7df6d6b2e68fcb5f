"""A run that is ended at random moments, in every way, and continued by the same command, is the same run."""

import pytest

from tests.distributed.endings import KINDS, end_and_continue, rounds, straight_losses
from tests.distributed.fault_cases import Site


def test_a_run_that_ends_in_every_way_is_the_same_run(tmp_path, shards, rank_server):
    """Kills, stop requests, Ctrl-C, SIGHUP, a killed data worker, a full disk: the loss log bit for bit.

    Fifty of them: `python -m benchmarks endings`.
    """
    whole = straight_losses(Site(tmp_path / "straight", shards, rank_server.start))
    (kinds,) = rounds(len(KINDS), seed=7)
    ended, losses = end_and_continue(Site(tmp_path / "ended", shards, rank_server.start), kinds, seed=7)
    assert [ending for ending in ended if not ending.is_as_expected] == []
    assert losses == whole


@pytest.mark.parametrize("count", [1, 6, 50])
def test_every_kind_has_its_turn(count):
    """As often as the others, or once less."""
    turns = [kind for kinds in rounds(count, seed=3) for kind in kinds]
    assert len(turns) == count
    assert {turns.count(kind) for kind in turns} <= {count // len(KINDS), -(-count // len(KINDS))}
