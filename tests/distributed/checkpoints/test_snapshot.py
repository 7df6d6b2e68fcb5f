"""Snapshots in host memory: what is written is the state of the moment, whatever training does meanwhile."""

import errno
import os
import resource
from collections import OrderedDict
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from distributed.checkpoints.snapshot import HostSnapshot, save_into, write_state_file
from distributed.engine.engine import (
    BatchSizes,
    EngineConfig,
    OptimizerConfig,
    deepspeed_json,
    prepare_deepspeed,
    start_engine,
)

# far above what the test runner itself writes meanwhile
LIMIT_BYTES, BEYOND_BYTES = 4 << 20, 5 << 20


@contextmanager
def files_up_to(size_bytes):
    """The kernel refuses this process to write a file beyond a size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_written_is_the_state_of_the_snapshot(tmp_path):
    """Weights that change after the snapshot do not change what is written; text and numbers come with them."""
    weights = torch.arange(6.0).view(2, 3)
    state = {"weights": weights, "nested": [weights.T, (3, "text")], "empty": torch.empty(0), "kind": torch.float16}
    snapshot = HostSnapshot()
    snapshot.begin()
    snapshot.add(state, tmp_path / "a.pt")
    snapshot.add({"weights": weights}, tmp_path / "b.safetensors")
    snapshot.add("written\n", tmp_path / "c.txt")
    before = weights.clone()
    weights.add_(100)
    snapshot.write()
    written = torch.load(tmp_path / "a.pt")
    assert torch.equal(written["weights"], before)
    assert torch.equal(written["nested"][0], before.T)
    assert written["nested"][1] == (3, "text")
    assert written["kind"] is torch.float16
    assert written["empty"].numel() == 0
    assert torch.equal(load_file(tmp_path / "b.safetensors")["weights"], before)
    assert (tmp_path / "c.txt").read_text() == "written\n"


def test_memory_is_used_again(tmp_path):
    """The second snapshot of the same shapes copies into the buffers of the first; other shapes get new ones."""
    snapshot, pointers_of = HostSnapshot(), []
    for shapes in ([(3, 4), (5,)], [(3, 4), (5,)], [(3, 4), (7,)]):
        snapshot.begin()
        state = {f"w{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
        snapshot.add(state, tmp_path / "a.pt")
        pointers_of.append([buffer.data_ptr() for buffer in snapshot._buffers])
        snapshot.write()
        written = torch.load(tmp_path / "a.pt")
        assert all(torch.equal(written[name], tensor) for name, tensor in state.items())
    assert len(snapshot._buffers) == 2
    first, second, third = pointers_of
    assert first == second
    assert first[0] == third[0]


def test_tensors_that_share_memory_share_their_copy(tmp_path):
    """A tied weight is copied and written once; a module's state keeps its class and its metadata."""
    module = torch.nn.Linear(64, 64, bias=False)
    state = module.state_dict()
    state["tied"] = state["weight"]
    snapshot = HostSnapshot()
    snapshot.begin()
    snapshot.add({"module": state}, tmp_path / "a.pt")
    assert len(snapshot._buffers) == 1
    snapshot.write()
    written = torch.load(tmp_path / "a.pt")["module"]
    assert type(written) is OrderedDict
    assert written._metadata == state._metadata
    assert written["tied"].data_ptr() == written["weight"].data_ptr()


def test_without_copies_references_are_written(tmp_path):
    """For a caller who waits, no memory is taken."""
    weights = torch.zeros(3)
    snapshot = HostSnapshot(copies=False)
    snapshot.begin()
    snapshot.add({"weights": weights}, tmp_path / "a.pt")
    assert not snapshot._buffers
    weights.add_(1)
    snapshot.write()
    assert torch.equal(torch.load(tmp_path / "a.pt")["weights"], torch.ones(3))


@pytest.mark.parametrize("name", ["state.pt", "state.safetensors", "state.json"])
def test_a_disk_that_is_full_is_an_os_error(tmp_path, name):
    """Whatever library writes, and whatever error it makes of it: an OSError that says so."""
    state = "x" * BEYOND_BYTES if name.endswith("json") else {"weights": torch.zeros(BEYOND_BYTES // 4)}
    with files_up_to(LIMIT_BYTES), pytest.raises(OSError, match="File too large") as caught:
        write_state_file(state, tmp_path / name)
    assert name.endswith("safetensors") or caught.value.errno == errno.EFBIG


def test_other_errors_of_the_writer_are_not_hidden(tmp_path):
    """A state that cannot be pickled is no full disk."""
    with pytest.raises((AttributeError, TypeError, RuntimeError), match=r"pickle|local object"):
        write_state_file({"f": lambda: None}, tmp_path / "a.pt")


def test_deepspeed_saves_into_the_snapshot(tmp_path, monkeypatch, alone):
    """The engine's `save_checkpoint` writes no file of its own; the snapshot's files load by `load_checkpoint`."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("LOCAL_RANK", "0")
    prepare_deepspeed(os.environ, device=torch.device("cpu"))
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

    config = deepspeed_json(EngineConfig(), OptimizerConfig(), BatchSizes(1, 1, 1), num_trained=12)
    module = torch.nn.Linear(3, 4, bias=False)
    engine = start_engine(module, EngineConfig(), OptimizerConfig(), ds_config=config)
    snapshot = HostSnapshot()
    save_into(engine, snapshot)
    assert isinstance(engine.checkpoint_engine, CheckpointEngine)
    snapshot.begin()
    engine.save_checkpoint(str(tmp_path), tag="engine", save_latest=False)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.zero_()
    snapshot.write()
    assert not list(tmp_path.rglob("*.py"))
    path, _ = engine.load_checkpoint(str(tmp_path), tag="engine")
    assert path is not None
    assert torch.equal(module.weight, before)
