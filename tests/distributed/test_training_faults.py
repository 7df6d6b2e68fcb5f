"""Faults of a training on two ranks, played for real: what the ranks say, how they end, and what the run becomes."""

import re
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import pytest

from tests.distributed.fault_cases import CASES, STEPS, STRUCK_STEP, Case, Site, build_shards, start_ranks, straight
from tests.distributed.rank_server import RankServer

IN_SUITE = [case for case in CASES if case.in_suite]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, rank_server):
    """What came of each case and, under "", of the run without a fault; two at a time, for most of it is waiting."""
    shards = str(tmp_path_factory.mktemp("shards") / "train")
    build_shards(shards)
    plays = {"": straight} | {case.fault: case.play for case in IN_SUITE}
    with RankServer() as other, ThreadPoolExecutor(2) as players:
        servers = Queue()
        servers.put(rank_server)
        servers.put(other)

        def played(play):
            server = servers.get()
            try:
                return play(Site(tmp_path_factory.mktemp("site"), shards, server.start, to_the_end=False))
            finally:
                servers.put(server)

        futures = {fault: players.submit(played, play) for fault, play in plays.items()}
        return {fault: future.result() for fault, future in futures.items()}


@pytest.mark.parametrize("case", IN_SUITE, ids=lambda case: case.fault)
def test_a_fault_is_named_and_costs_no_exactness(case: Case, outcomes):
    """The exit codes, the sentence, the steps left out; up to there the losses are those of a run without a fault."""
    whole, outcome = outcomes[""], outcomes[case.fault]
    assert list(whole.losses) == list(range(STEPS))
    assert outcome.codes[0] == case.codes, outcome.said
    assert any(re.search(case.said, text) for text in outcome.said), outcome.said
    assert tuple(outcome.skipped) == case.skipped
    until = min((step for step in range(STEPS) if step not in outcome.losses), default=STEPS)
    assert until >= STRUCK_STEP
    assert [outcome.losses[step] for step in range(until)] == [whole.losses[step] for step in range(until)]


def test_the_rank_that_stands_still_shows_where(outcomes):
    """Its stacks end in the code that does not return."""
    (fault,) = (case.fault for case in IN_SUITE if "stands still" in case.fault)
    said = outcomes[fault].said[1]
    assert "the stacks of all threads" in said
    assert re.search(r"in strike\n.*in __iter__\n", said)


def test_a_step_left_out_leaves_the_others_theirs(outcomes):
    """After one step without a finite loss every other step is trained; its samples are named by their rank."""
    (fault,) = (case.fault for case in IN_SUITE if case.skipped == (STRUCK_STEP,))
    outcome = outcomes[fault]
    assert sorted(outcome.losses) == [step for step in range(STEPS) if step != STRUCK_STEP]
    assert re.search(rf"rank 1: step {STRUCK_STEP}: no finite loss of (track\d+-0000 ?){{4}}\n", outcome.said[1])
    assert "no finite loss" not in outcome.said[0]


def test_a_bug_on_one_rank_ends_the_other_that_waits_for_it(tmp_path, shards, rank_server):
    """In the thread that writes a checkpoint, before the ranks gather what they have written."""
    site = Site(tmp_path, shards, rank_server.start)
    codes, said = start_ranks(site, {"rank": 1, "steps": [STRUCK_STEP], "what": "broken checkpoint"}, ())
    assert codes == (1, 1), said
    assert "KeyError: 'a bug'" in said[1]
    assert re.search(r"rank 1 failed first \(KeyError: 'a bug'\): rank 0 cannot continue", said[0])


def test_the_store_was_missed(outcomes):
    """The training did meet the outage."""
    (fault,) = (case.fault for case in IN_SUITE if "object store" in case.fault)
    assert outcomes[fault].counters["data/retries"] >= 1
