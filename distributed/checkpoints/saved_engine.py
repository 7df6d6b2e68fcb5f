"""DeepSpeed's files of a checkpoint, read as whole float32 tensors by parameter name.

The files have the layout of the world and stage that wrote them. They are mapped into memory, and a parameter is
concatenated from its pieces on request. So a rank reads what it needs and holds one parameter at a time.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from distributed.checkpoints.manifest import CheckpointError

WEIGHTS, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")
KEYS = (WEIGHTS, *MOMENTS)
# DeepSpeed's classes in its files: plain records, which run no code of a file
_CLASSES = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)


class SavedEngine:
    """Weights and AdamW's moments of a checkpoint.

    Args:
        folder: DeepSpeed's folder; verify it first.
        world_size, stage: of the run that wrote it.
        names: required parameters.
    """

    def __init__(self, folder: Path, *, world_size: int, stage: int, names: Sequence[str]):
        pieces: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        self.optimizer_steps: Tensor = torch.tensor(0.0)
        for name, key, piece in _PIECES[stage](folder, world_size):
            if key == "step":
                self.optimizer_steps = torch.as_tensor(piece, dtype=torch.float32)
            else:
                pieces[name, key].append(piece)
        missing = [name for name in names if (name, WEIGHTS) not in pieces]
        if missing:
            raise CheckpointError(f"{folder} does not hold {', '.join(missing[:3])}: it belongs to another model")
        self._pieces = pieces

    def whole(self, name: str, key: str) -> Tensor:
        """Returns the weights or a moment (`key` of KEYS) of a parameter, flat."""
        return torch.cat(self._pieces[name, key])


def _cut_by_group(folder: Path, world_size: int) -> Iterator[tuple[str, str, Tensor]]:
    for rank in range(world_size):
        saved = _optimizer_of(folder, rank)
        for group, places in enumerate(saved["param_slice_mappings"]):
            state = saved["base_optimizer_state"]["state"][group]
            flat = {WEIGHTS: saved["single_partition_of_fp32_groups"][group], **{key: state[key] for key in MOMENTS}}
            for name, place in places.items():
                yield from ((name, key, flat[key].narrow(0, place.start, place.numel)) for key in KEYS)
            yield "", "step", state["step"]


def _cut_by_parameter(folder: Path, world_size: int) -> Iterator[tuple[str, str, Tensor]]:
    shapes = read_state_file(folder / "zero_pp_rank_0_mp_rank_00_model_states.pt", mapped=True)["param_shapes"]
    for rank in range(world_size):
        saved = _optimizer_of(folder, rank)
        for group, shape_of in enumerate(shapes):
            state = saved["optimizer_state_dict"]["state"][group]
            flat = {WEIGHTS: saved["fp32_flat_groups"][group], **{key: state[key] for key in MOMENTS}}
            start = 0
            for name, shape in shape_of.items():
                each = math.ceil(shape.numel() / world_size)
                # the slices of the last ranks are padded to the length of the others
                own = max(0, min(each, shape.numel() - rank * each))
                for key in KEYS:
                    yield name, key, flat[key].narrow(0, start, own)
                start += each
            yield "", "step", state["step"]


_PIECES = {1: _cut_by_group, 2: _cut_by_group, 3: _cut_by_parameter}


def _optimizer_of(folder: Path, rank: int) -> dict[str, Any]:
    path = folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    return read_state_file(path, mapped=True)["optimizer_state_dict"]


def read_state_file(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Reads a file of torch.save without running code that a foreign file may hold.

    Args:
        mapped: map it into memory instead of reading it.

    Raises:
        CheckpointError: it holds other classes than DeepSpeed's records.
    """
    try:
        held = set(get_unsafe_globals_in_checkpoint(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is not a state of this program ({error}); do not use this copy") from error
    if strange := sorted(held - _CLASSES):
        raise CheckpointError(
            f"{path} holds {', '.join(strange[:3])}, which no checkpoint of this program has and which could run "
            f"foreign code; do not use this copy"
        )
    with safe_globals([_class_of(name) for name in held]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _class_of(name: str) -> Any:
    module, _, own = name.rpartition(".")
    return getattr(import_module(module), own)
