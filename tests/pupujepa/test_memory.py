"""Memory by ZeRO stage."""

import pytest

from pupujepa.cost import ParameterCounts
from pupujepa.memory import ZERO_STAGES, memory_per_rank

COUNTS = ParameterCounts(patch_embed=100, encoder=8000, predictor=1900)  # 10,000 trained


def test_each_stage_shards_more():
    """From stage 1 on the optimiser's share falls with the ranks, from 2 the gradients', at 3 the parameters'."""
    memory = [memory_per_rank(COUNTS, zero_stage=s, ranks=4, activation_bytes=7) for s in ZERO_STAGES]
    assert [m.optimizer for m in memory] == [80_000] + [30_000] * 3
    assert [m.gradients for m in memory] == [40_000] * 2 + [10_000] * 2
    assert [m.parameters for m in memory] == [40_000] * 3 + [10_000]
    assert {m.teacher for m in memory} == {32_000}
    assert {m.activations for m in memory} == {7}
    assert memory[0].total == 40_000 + 40_000 + 80_000 + 32_000 + 7


@pytest.mark.parametrize("ranks", [3, 7])
def test_the_rank_that_holds_most_is_counted(ranks):
    """Parameters that the ranks cannot share evenly are rounded up."""
    memory = memory_per_rank(COUNTS, zero_stage=3, ranks=ranks, activation_bytes=0)
    assert ranks * memory.parameters >= 40_000 > ranks * (memory.parameters - 4)
