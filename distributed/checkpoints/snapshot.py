"""Copies of a training state in host memory: training continues while they are written to disk.

The next snapshot reuses the buffers: copies into mapped memory, pinned for a GPU, are several times as fast as into new
memory. Tensors that share memory share their copy.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


class HostSnapshot:
    """One snapshot at a time: `begin`, `add` states with their files, then `write` in any thread.

    Args:
        copies: False keeps references, for a caller that waits for the writing.
    """

    def __init__(self, *, copies: bool = True):
        self._copies = copies
        self._buffers: list[Tensor] = []
        self._states: list[tuple[Any, Path]] = []
        self._used = 0
        self._ordered: torch.cuda.Event | None = None

    def begin(self) -> None:
        """Begins a new snapshot and drops the states that were not written."""
        self._states, self._used = [], 0

    def add(self, state: Any, path: Path | str, *, owned: bool = False) -> None:
        """Copies a state for `write_state_file`; `owned` states are copies already."""
        self._states.append((state if owned or not self._copies else self._copied(state, {}), Path(path)))
        if torch.cuda.is_available():
            self._ordered = torch.cuda.Event()
            self._ordered.record()

    def write(self) -> None:
        """Writes the files.

        Raises:
            OSError: the disk is full, or the folder is not writable.
        """
        if self._ordered is not None:
            # copies from a GPU are asynchronous, ordered before the next step's kernels
            self._ordered.synchronize()
        for state, path in self._states:
            write_state_file(state, path)
        self._states = []

    def _copied(self, value: Any, seen: dict[Any, Tensor]) -> Any:
        if isinstance(value, Tensor):
            # tied parameters and views share one copy
            key = (value.data_ptr(), value.dtype, value.shape, value.stride())
            if not value.numel() or key not in seen:
                seen[key] = self._to_host(value.detach())
            return seen[key]
        if isinstance(value, dict):
            # copy.copy keeps the class and the attributes of a module's state_dict
            twin = copy.copy(value)
            for name, item in value.items():
                twin[name] = self._copied(item, seen)
            return twin
        if type(value) in (list, tuple):
            return type(value)(self._copied(item, seen) for item in value)
        return copy.deepcopy(value)

    def _to_host(self, tensor: Tensor) -> Tensor:
        if self._used == len(self._buffers) or not _fits(self._buffers[self._used], tensor):
            pinned = tensor.device.type == "cuda"
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._buffers[self._used : self._used + 1] = [buffer]
        buffer = self._buffers[self._used]
        self._used += 1
        return buffer.copy_(tensor, non_blocking=True)


def save_into(engine: Any, snapshot: HostSnapshot) -> None:
    """Makes `save_checkpoint` of a DeepSpeedEngine add its files to `snapshot` instead of writing them.

    A full disk on one rank inside `save_checkpoint` would hang the others.
    """
    # imported late: DeepSpeed chooses its accelerator at import (engine.prepare_deepspeed)
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class SnapshotCheckpointEngine(TorchCheckpointEngine):
        """DeepSpeed's checkpoint engine, which saves into the snapshot."""

        def save(self, state_dict: Any, path: str) -> None:
            snapshot.add(state_dict, path)

    engine.checkpoint_engine = SnapshotCheckpointEngine()
    # DeepSpeed copies its conversion script past the checkpoint engine; our `export` replaces it
    engine._copy_recovery_script = lambda _: None


def write_state_file(state: Any, path: Path) -> None:
    """Writes text, or a state by safetensors (by the suffix) or torch.save; raises OSError."""
    if isinstance(state, str):
        path.write_text(state)
        return
    if path.suffix == ".safetensors":
        try:
            save_file(state, path)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error
        return
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # after a failed write, torch raises an error about its position in the archive
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _fits(buffer: Tensor, tensor: Tensor) -> bool:
    return buffer.shape == tensor.shape and buffer.dtype == tensor.dtype
