"""Loads a checkpoint into an engine, also with another number of ranks or another ZeRO stage.

DeepSpeed loads checkpoints of the same world and stage. Its conversion of others writes a second checkpoint, cannot
convert all stages, and gives torch's AdamW the settings of the first group for all. Here each rank reads its slices of
weights and moments from the files, from any stage into any other.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distributed.checkpoints.manifest import Checkpoint, CheckpointError
from distributed.checkpoints.saved_engine import MOMENTS, WEIGHTS, SavedEngine, read_state_file
from distributed.checkpoints.state import ENGINE_FOLDER


def load_engine(engine: Any, found: Checkpoint) -> None:
    """Loads weights and optimiser states, but not its settings; all ranks together.

    Raises:
        CheckpointError: the checkpoint does not fit the model.
    """
    saved = (found.facts["world_size"], found.facts["zero_stage"])
    now = (dist.get_world_size(), engine.zero_optimization_stage())
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    if saved == now:
        engine.checkpoint_engine.load = _load_plainly
        path, _ = engine.load_checkpoint(str(found.path), tag=ENGINE_FOLDER)
        if path is None:
            raise CheckpointError(f"DeepSpeed could not load {ENGINE_FOLDER} from {found.path}")
    else:
        take_apart(engine, found)
    # DeepSpeed has loaded the weight decay of the saved run
    for group, decay in zip(engine.optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    dist.barrier()


def _load_plainly(path: str, map_location: Any = None) -> dict[str, Any]:
    """Loads for DeepSpeed's checkpoint engine, whose own way would run the code of a file."""
    return read_state_file(Path(path))


def take_apart(engine: Any, found: Checkpoint) -> None:
    """Loads this rank's slices of a checkpoint of another world or stage; all ranks together."""
    stage = engine.zero_optimization_stage()
    names = {id(p): name for name, p in engine.module.named_parameters()}
    groups = _GROUPS[stage](engine.optimizer)
    saved = SavedEngine(
        found.path / ENGINE_FOLDER,
        world_size=found.facts["world_size"],
        stage=found.facts["zero_stage"],
        names=[names[id(p)] for group in groups for p in group],
    )
    _TAKE[stage](engine.optimizer, groups, names=names, saved=saved)
    engine.global_steps = found.step
    engine.global_samples = found.step * engine.train_batch_size()


@torch.no_grad()
def _take_of_groups(zero: Any, groups: list[list[Tensor]], *, names: dict[int, str], saved: SavedEngine) -> None:
    """Loads stages 1 and 2: a rank holds one slice of all parameters of a group, concatenated."""
    for group, settings in zip(groups, zero.optimizer.param_groups, strict=True):
        (flat,) = settings["params"]
        parts = {WEIGHTS: flat.data, **{key: torch.zeros_like(flat) for key in MOMENTS}}
        for parameter in group:
            if parameter._hp_mapping is None:  # type: ignore[attr-defined]  # no entry is on this rank
                continue
            here = parameter._hp_mapping.get_hp_fragment_address()  # type: ignore[attr-defined]
            there = parameter._hp_mapping.lp_fragment_address  # type: ignore[attr-defined]
            for key, part in parts.items():
                whole = saved.whole(names[id(parameter)], key)
                part.narrow(0, here.start, here.numel).copy_(whole.narrow(0, there.start, there.numel))
        zero.optimizer.state[flat] = {"step": saved.optimizer_steps.clone(), **{key: parts[key] for key in MOMENTS}}
    zero.update_lp_params()


@torch.no_grad()
def _take_of_parameters(zero: Any, groups: list[list[Tensor]], *, names: dict[int, str], saved: SavedEngine) -> None:
    """Loads stage 3: a rank holds a slice of every parameter, padded with zeros to equal length."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for number, (group, flat) in enumerate(zip(groups, zero.fp32_partitioned_groups_flat, strict=True)):
        parts = {WEIGHTS: flat.data, **{key: torch.zeros_like(flat) for key in MOMENTS}}
        start = 0
        for parameter in group:
            numel = parameter.ds_numel  # type: ignore[attr-defined]
            each = math.ceil(numel / world_size)
            own = max(0, min(each, numel - rank * each))
            for key, part in parts.items():
                whole = saved.whole(names[id(parameter)], key)
                part.narrow(0, start, each).zero_()
                part.narrow(0, start, own).copy_(whole.narrow(0, min(rank * each, numel), own))
            start += each
        zero.optimizer.state[flat] = {"step": saved.optimizer_steps.clone(), **{key: parts[key] for key in MOMENTS}}
        # the forward pass gathers views into this buffer
        zero.fp16_partitioned_groups_flat[number].data.copy_(flat.data)
        partitions = zero.fp16_partitioned_groups[number]
        for partition, value in zip(partitions, zero.unflatten(zero.fp16_partitioned_groups_flat[number], partitions)):
            partition.data = value.data
    if zero.persistent_parameters:
        # small parameters stay gathered, so gather them again
        zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


_GROUPS = {
    1: lambda zero: zero.bit16_groups,
    2: lambda zero: zero.bit16_groups,
    3: lambda zero: zero.fp16_groups,
}
_TAKE = {1: _take_of_groups, 2: _take_of_groups, 3: _take_of_parameters}
