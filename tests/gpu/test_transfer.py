"""Between host and device: batches on their way in, snapshots on their way out, and the peak in between."""

from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.engine.bare import experiment_of
from benchmarks.engine.launch import on_ranks
from benchmarks.engine.memory import measure
from data.stream.config import StreamConfig
from data.stream.corpora import read_corpora
from data.stream.stream import Stream
from distributed.checkpoints.snapshot import HostSnapshot
from distributed.engine.engine import batch_sizes
from distributed.plan.plan import step_config
from pupujepa.cost.memory import peak_memory
from pupujepa.training.masks import MaskConfig
from tests.gpu.trainings import TIMEOUT_S, device_environment

STEPS = 6
# peaks of gigabytes on a GPU: the workspaces of its libraries, tens of megabytes, are not in the plan
MEASURED = {
    "cpu": ("model=demo", "engine.micro_batch=4", "engine.precision=fp32"),
    "cuda": ("model=base", "engine.micro_batch=16", "engine.precision=bf16"),
}


def stream_of(shards, *, workers, pin_memory):
    config = StreamConfig(url=shards, crop_frames=64, global_batch=8, lanes=4, window_shards=2, workers=workers)
    options = {"rank": 0, "world_size": 1, "micro_batch": 4, "masks": MaskConfig(), "total_steps": STEPS}
    return Stream(config, manifest=read_corpora(config), pin_memory=pin_memory, **options)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_arrive_from_pinned_memory_as_they_were_made(device, shards):
    """By worker processes, for a GPU in page-locked memory, from which nobody waits for a copy; every value arrives."""
    pinned = device.type == "cuda"
    made = list(stream_of(shards, workers=0, pin_memory=False))
    arrived = stream_of(shards, workers=2, pin_memory=pinned)
    assert len(made) == 2 * STEPS
    for batch, expected in zip(islice(arrived, len(made)), made, strict=True):
        assert all(tensor.is_pinned() == pinned for tensor in batch.tensors().values() if tensor.numel())
        on_device = batch.to(device)
        assert on_device.uids == expected.uids
        for name, tensor in on_device.tensors().items():
            assert tensor.device.type == device.type
            assert torch.equal(tensor.cpu(), expected.tensors()[name]), name


def test_a_snapshot_is_of_its_moment(device, tmp_path):
    """Weights that move on while their copy is on its way do not change what is written; again in the same memory."""
    weights = torch.arange(1 << 22, dtype=torch.float32, device=device)
    snapshot = HostSnapshot()
    for number in range(3):
        before = weights.cpu().clone()
        snapshot.begin()
        snapshot.add({"weights": weights}, tmp_path / "weights.safetensors")
        weights.mul_(2).add_(number)
        snapshot.write()
        assert torch.equal(load_file(tmp_path / "weights.safetensors")["weights"], before)


def test_the_planned_peak_is_the_measured_one(device):
    """Of a training step at stage 1, within 15 %: what torch's allocator has handed out at once."""
    settings = {"preset": "paper", "overrides": list(MEASURED[device.type])}
    timeout_s = TIMEOUT_S[device.type]
    measured = on_ranks(measure, settings, ranks=1, environ=device_environment(device.type), timeout_s=timeout_s)
    experiment = experiment_of(settings, ranks=1)
    batch = experiment.engine.micro_batch
    sizes = batch_sizes(batch, micro_batch=batch, world_size=1)
    _, planned = peak_memory(step_config(experiment, sizes, world_size=1, on_cpu=device.type == "cpu"))
    assert planned.total == pytest.approx(measured["peak"], rel=0.15)
