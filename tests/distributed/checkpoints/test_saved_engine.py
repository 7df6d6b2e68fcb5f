"""DeepSpeed's files are read as plain states: no code of a foreign file runs, on any way to load one."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from distributed.checkpoints.manifest import Checkpoint, CheckpointError
from distributed.checkpoints.reshard import load_engine
from distributed.checkpoints.saved_engine import read_state_file


class Hostile:
    """Leaves a file when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def test_the_classes_of_deepspeed_are_read(tmp_path):
    """What a checkpoint of any stage holds comes back equal, mapped or not."""
    state = {
        "weights": torch.arange(6.0),
        "places": {"a": fragment_address(numel=4, start=2)},
        "scalers": [LossScaler(1.0), DynamicLossScaler(2.0, 2.0, 1000, 1.0, 2, False, True)],
        "stage": ZeroStageEnum.gradients,
    }
    torch.save(state, tmp_path / "a.pt")
    for mapped in (False, True):
        found = read_state_file(tmp_path / "a.pt", mapped=mapped)
        assert torch.equal(found["weights"], state["weights"])
        assert found["places"] == state["places"]
        assert [vars(scaler) for scaler in found["scalers"]] == [vars(scaler) for scaler in state["scalers"]]
        assert found["stage"] is ZeroStageEnum.gradients


def test_a_file_with_code_is_refused(tmp_path):
    """A pickle that would call a function is named with it, and not run; neither is what torch did not write."""
    torch.save({"module": Hostile(tmp_path / "trace")}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt holds posix\.mkdir, which no checkpoint of this program has"):
        read_state_file(tmp_path / "a.pt")
    torch.save({"module": Hostile(tmp_path / "trace")}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"b\.pt is not a state of this program"):
        read_state_file(tmp_path / "b.pt")
    assert not (tmp_path / "trace").exists()


def test_deepspeed_itself_runs_no_code_of_a_file(tmp_path):
    """The loading of a world and stage as saved is DeepSpeed's, through its own engine of files."""
    torch.save({"module": Hostile(tmp_path / "trace")}, tmp_path / "a.pt")
    engine = SimpleNamespace(
        checkpoint_engine=TorchCheckpointEngine(),
        zero_optimization_stage=lambda: 1,
        optimizer=SimpleNamespace(param_groups=[]),
    )
    engine.load_checkpoint = lambda folder, tag: engine.checkpoint_engine.load(f"{folder}/a.pt", map_location="cpu")
    found = Checkpoint(tmp_path, 5, {"world_size": 1, "zero_stage": 1}, "")
    with pytest.raises(CheckpointError, match="holds posix"):
        load_engine(engine, found)
    assert not (tmp_path / "trace").exists()


pytestmark = pytest.mark.usefixtures("alone")
