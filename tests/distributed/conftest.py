"""Shards that whole trainings run on, and a process group of one."""

import pytest
import torch

from distributed.topology import Topology, process_group
from tests.data.shardsets import build_shard_set


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """64 tracks in four shards, most of them longer than a crop."""
    url = tmp_path_factory.mktemp("shards") / "train"
    build_shard_set(str(url), (16, 16, 16, 16), num_frames=lambda number: 64 + number % 9)
    return str(url)


@pytest.fixture(scope="module")
def alone():
    """A process group of this process alone, which collective operations need."""
    with process_group(Topology(), timeout_s=300, device=torch.device("cpu")):
        yield
