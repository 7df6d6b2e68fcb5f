"""Each sample exactly once per epoch, proven by a ledger: real ranks log their reads, are killed, and others resume."""

import multiprocessing
import os
import signal
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from data.order.epoch import EpochOrder
from data.reading.reader import ShardReader
from data.stream.config import CorpusConfig, StreamConfig
from tests.data.ledger import Session, next_session, read_and_write_down
from tests.data.shardsets import LO, build_shard_set

SHARDS = (7, 5, 6, 4, 9, 3, 8, 10, 6, 9)  # 67 samples: epochs of 8 steps, 3 samples left out of each
TOTAL_STEPS = 16
PATIENCE_S = 120


def run(session: Session) -> None:
    """Runs a session's ranks to the end, or kills each at its step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "webdataset", "data.stream.workers"])
    ranks = []
    for rank in range(session.world_size):
        ours, theirs = context.Pipe()
        process = context.Process(target=read_and_write_down, args=(session, rank, theirs))
        process.start()
        theirs.close()
        ranks.append((process, ours))
    try:
        for rank, (process, ready) in enumerate(ranks):
            if session.dies_at is not None:
                assert wait([ready, process.sentinel], PATIENCE_S), "the rank hangs"
                assert ready.recv() == session.dies_at[rank]
                os.kill(process.pid, signal.SIGKILL)
            process.join(PATIENCE_S)
            assert process.exitcode == (0 if session.dies_at is None else -signal.SIGKILL)
    finally:
        for process, ready in ranks:
            process.kill()
            process.join()
            ready.close()


def counted(sessions: list[Session]) -> list[dict[str, Any]]:
    """The micro-batches of the steps that count: from the start of a session to the start of the next one."""
    begins = [session.saved["step"] if session.saved else 0 for session in sessions]
    ends = [*begins[1:], TOTAL_STEPS]
    return [
        line
        for session, begin, end in zip(sessions, begins, ends)
        for line in session.lines()
        if begin <= line["step"] < end
    ]


def killed_twice(config: StreamConfig, folder: Path) -> list[Session]:
    """A run of 2 ranks, then 4, then 1, with worker processes and without; ranks die in the middle of steps."""
    first = Session(0, config, 2, TOTAL_STEPS, saved=None, dies_at=(5, 6), folder=folder)
    run(first)
    second = next_session(first, world_size=4, dies_at=(11, 10, 10, 12), config=replace(config, workers=1))
    run(second)
    last = next_session(second, world_size=1, dies_at=None, config=config)
    run(last)
    assert [session.saved and session.saved["step"] for session in (first, second, last)] == [None, 4, 10]
    return [first, second, last]


def test_every_sample_counts_once_an_epoch_across_kill_9_and_changed_worlds(tmp_path):
    """Over two epochs the steps that count have each sample once, except for those that the order leaves out."""
    url = str(tmp_path / "shards")
    manifest = build_shard_set(url, SHARDS)
    config = StreamConfig(url=url, seed=3, crop_frames=32, global_batch=8, lanes=4, window_shards=2, workers=0)
    sessions = killed_twice(config, tmp_path)
    lines = counted(sessions)
    assert Counter(line["step"] for line in lines) == dict.fromkeys(range(TOTAL_STEPS), 8)
    reader, layout = ShardReader(url, manifest), sessions[0].stream(0).mix.layouts[0]
    everything = {reader.uid(s, i) for s, entry in enumerate(manifest.shards) for i in range(entry.samples)}
    for epoch in (0, 1):
        seen = Counter(uid for line in lines if line["epoch"] == epoch for uid in line["uids"])
        rest = EpochOrder(layout, epoch).left_out()
        left_out = {reader.uid(*place) for place in zip(rest.shard.tolist(), rest.sample_of_shard.tolist())}
        assert len(left_out) == 3
        assert set(seen.values()) == {1}
        assert set(seen) == everything - left_out
    reader.close()
    again_as_before(sessions)


def again_as_before(sessions: list[Session]) -> None:
    """The next session reads again, sample for sample, the steps of a killed session after its last save."""
    for killed, following in pairwise(sessions):
        lost = [line for line in killed.lines() if line["step"] >= following.saved["step"]]
        assert lost, "the kill came after the save"
        redone: dict[int, Counter] = {}
        for line in counted(sessions):
            redone.setdefault(line["step"], Counter()).update(zip(line["uids"], line["draws"]))
        for step in {line["step"] for line in lost}:
            before = Counter(pair for line in lost if line["step"] == step for pair in zip(line["uids"], line["draws"]))
            assert before <= redone[step]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_mix_is_continued_exactly_across_kill_9_and_changed_worlds(tmp_path):
    """The steps that count are, sample for sample, those of an undisturbed run."""
    large, small = str(tmp_path / "large"), str(tmp_path / "small")
    build_shard_set(large, SHARDS)
    build_shard_set(small, (5, 4), lo=LO - 3.0)
    mix = {"large": CorpusConfig(large, 3.0), "small": CorpusConfig(small, 1.0)}
    config = StreamConfig(seed=3, crop_frames=32, global_batch=8, lanes=4, window_shards=2, workers=0, mix=mix)
    straight: dict[int, Counter] = {}
    for batch in Session(9, config, 1, TOTAL_STEPS, saved=None, dies_at=None, folder=tmp_path).stream(0):
        straight.setdefault(batch.step, Counter()).update(zip(batch.uids, batch.draws.tolist()))
    sessions = killed_twice(config, tmp_path)
    ledger: dict[int, Counter] = {}
    for line in counted(sessions):
        ledger.setdefault(line["step"], Counter()).update(zip(line["uids"], line["draws"]))
    assert ledger == straight
    again_as_before(sessions)
