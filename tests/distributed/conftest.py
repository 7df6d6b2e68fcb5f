"""Shards that whole trainings run on, ranks that run them, and a process group of one."""

from pathlib import Path

import pytest
import torch

from distributed.processes.topology import Topology, process_group
from tests.data.shardsets import build_shard_set
from tests.distributed.rank_server import RankServer, world


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """64 tracks in four shards, most of them longer than a crop."""
    url = tmp_path_factory.mktemp("shards") / "train"
    build_shard_set(str(url), (16, 16, 16, 16), num_frames=lambda number: 64 + number % 9)
    return str(url)


@pytest.fixture(scope="session")
def rank_server():
    """Starts ranks without what importing torch and DeepSpeed takes; see rank_server.py."""
    with RankServer() as server:
        yield server


@pytest.fixture(scope="session")
def run_jobs(rank_server):
    """Runs several trainings in one launch (see jobs.py): `run_jobs(logs, (2, jobs), (1, more))`, beside each other."""

    def run(logs, *worlds):
        ranks = [rank for size, jobs in worlds for rank in world(size, "tests.distributed.jobs:main", jobs, logs=logs)]
        codes = rank_server.start(ranks)
        said = "".join(Path(rank["log"]).read_text()[-6000:] for rank, code in zip(ranks, codes, strict=True) if code)
        assert not any(codes), f"{codes}\n{said}"

    return run


@pytest.fixture(scope="module")
def alone():
    """A process group of this process alone, which collective operations need."""
    with process_group(Topology(), timeout_s=300, device=torch.device("cpu")):
        yield
