"""The device that a test runs on: the CPU always, so that its body is known to work, and a GPU where there is one."""

import os

# as in tests/conftest.py, which is not read where these tests run alone
os.environ.setdefault("OMP_NUM_THREADS", "1")
# read with the first matrix product, and needed for kernels of a fixed order from then on
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from distributed.processes.topology import Topology, process_group
from tests.data.shardsets import build_shard_set
from tests.gpu.trainings import train

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_runtest_setup(item):
    """A GPU test is skipped where there is no GPU, before its fixtures train anything."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", params=DEVICES)
def device(request):
    """Each device in turn."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """64 tracks in four shards, most of them longer than a crop."""
    url = tmp_path_factory.mktemp("shards") / "train"
    build_shard_set(str(url), (16, 16, 16, 16), num_frames=lambda number: 64 + number % 9)
    return str(url)


@pytest.fixture(scope="session")
def trainings_on(tmp_path_factory, shards):
    """Runs the trainings that several tests look at, once a device: `trainings_on(device).of(name)`.

    `only` names those that are wanted; by default all run.
    """
    from tests.gpu.test_trainings import jobs

    ended = {}

    def trained(device, *only):
        key = (device.type, *only)
        if key not in ended:
            wanted = {name: {"url": shards, **job} for name, job in jobs(device).items() if name in (only or [name])}
            ended[key] = train(tmp_path_factory.mktemp(device.type), wanted, device_type=device.type)
        return ended[key]

    return trained


@pytest.fixture(scope="module")
def group(device):
    """A process group of this process alone, NCCL on a GPU, which collective operations need."""
    with process_group(Topology(), timeout_s=300, device=device):
        yield device


@pytest.fixture
def alone():
    """The same on the CPU."""
    with process_group(Topology(), timeout_s=300, device=torch.device("cpu")):
        yield
