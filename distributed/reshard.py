"""Loading a checkpoint into an engine, also one with another number of ranks or another ZeRO stage.

DeepSpeed's own files fit the world and stage that wrote them. For any other they are first converted, by DeepSpeed's
tool, to a universal checkpoint: one float32 slice per parameter and optimiser state. The conversion is thrown away once
it is loaded; the next checkpoint has the new world's own files.
"""

import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distributed.checkpoint import Checkpoint, CheckpointError
from distributed.session import Session
from distributed.session_state import ENGINE_FOLDER

_CONVERSION = "resharded.tmp"
_TIMEOUT_S = 3600
# stages whose files DeepSpeed converts into each other
_CONVERTIBLE = ((0,), (1, 2), (3,))

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where an engine loads from, and what its JSON needs for that."""

    directory: Path
    tag: str = ENGINE_FOLDER
    ds_config: dict[str, Any] = field(default_factory=dict)
    temporary: bool = False


def loadable(found: Checkpoint, session: Session) -> Source:
    """Returns what the engine of this session can load for `found`; all ranks together.

    Raises:
        CheckpointError: it was saved at a ZeRO stage that cannot be converted to this session's.
    """
    world_size, stage = found.facts["world_size"], found.facts["zero_stage"]
    now = (session.topology.world_size, session.experiment.engine.zero_stage)
    if (world_size, stage) == now or stage == now[1] == 0:
        # at stage 0 every rank holds everything, so the number of ranks does not matter
        return Source(found.path)
    family = next(family for family in _CONVERTIBLE if stage in family)
    if now[1] not in family:
        raise CheckpointError(
            f"{found.name} was saved at ZeRO stage {stage} and cannot be continued at stage {now[1]}, because "
            f"DeepSpeed does not convert between them; use engine.zero_stage={' or '.join(map(str, family))}, with any "
            f"number of ranks"
        )
    target = found.path.parent / _CONVERSION
    if session.topology.is_first:
        logger.info("resharding %s from %d ranks at stage %d to %d at stage %d", found.name, world_size, stage, *now)
        _convert(found.path / ENGINE_FOLDER, target / ENGINE_FOLDER, stage=stage)
    dist.barrier()
    return Source(target, ds_config={"checkpoint": {"load_universal": True}}, temporary=True)


def load_engine(engine: Any, source: Source, session: Session) -> None:
    """Loads weights and optimiser; all ranks together.

    Raises:
        CheckpointError: DeepSpeed did not find what the manifest says is there.
    """
    decay_of_groups = [group["weight_decay"] for group in engine.optimizer.param_groups]
    path, _ = engine.load_checkpoint(str(source.directory), tag=source.tag)
    if source.temporary:
        _repair_optimizer(engine, decay_of_groups)
    if path is None:
        raise CheckpointError(f"DeepSpeed could not load {source.tag} from {source.directory}")
    dist.barrier()
    if source.temporary and session.topology.is_first:
        shutil.rmtree(source.directory)


def _repair_optimizer(engine: Any, decay_of_groups: list[float]) -> None:
    """Puts right what DeepSpeed 0.19's universal loading under stage 3 does to torch's AdamW.

    It gives all parameters one and the same `step` tensor, which then counts once per parameter, and all groups the
    settings of the first, so that biases and norms would decay.
    """
    for group, decay in zip(engine.optimizer.param_groups, decay_of_groups, strict=True):
        group["weight_decay"] = decay
    for state in engine.optimizer.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def _convert(source: Path, target: Path, *, stage: int) -> None:
    shutil.rmtree(target.parent, ignore_errors=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(source), "--output_folder", str(target)]
    if stage < 3:
        # stages 1 and 2 do not write the table that the tool asks for
        command.append("--inject_missing_state")
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode:
        raise CheckpointError(
            f"{source} could not be converted for another number of ranks or ZeRO stage; start with those it was saved "
            f"with, or see what DeepSpeed said:\n{done.stderr[-2000:]}"
        )
