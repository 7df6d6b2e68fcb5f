"""Copies of a training state in host memory, so that training goes on while they are written to disk.

The copies live in buffers that the next snapshot uses again: memory that is mapped, and pinned beside a GPU, takes a
copy several times as fast as new memory. Tensors that share their memory share their copy.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


class HostSnapshot:
    """A snapshot at a time: `begin`, `add` states with the files that they go to, then `write`, in any thread.

    Args:
        copies: False keeps references instead, for a caller who waits until all is written.
    """

    def __init__(self, *, copies: bool = True):
        self._copies = copies
        self._buffers: list[Tensor] = []
        self._states: list[tuple[Any, Path]] = []
        self._used = 0
        self._ordered: torch.cuda.Event | None = None

    def begin(self) -> None:
        """Begins a new snapshot; the one before must have been written, or is dropped."""
        self._states, self._used = [], 0

    def add(self, state: Any, path: Path | str, *, owned: bool = False) -> None:
        """Copies what is to be written to `path`: text as it is, the rest by torch.save or, by its suffix, safetensors.

        Args:
            owned: the state is a copy already, which nobody will change.
        """
        self._states.append((state if owned or not self._copies else self._copied(state, {}), Path(path)))
        if torch.cuda.is_available():
            self._ordered = torch.cuda.Event()
            self._ordered.record()

    def write(self) -> None:
        """Writes the files.

        Raises:
            OSError: a disk that is full, or a folder that may not be written to.
        """
        if self._ordered is not None:
            # a GPU's copies were only ordered, before whatever the training orders next
            self._ordered.synchronize()
        for state, path in self._states:
            write_state_file(state, path)
        self._states = []

    def _copied(self, value: Any, seen: dict[Any, Tensor]) -> Any:
        if isinstance(value, Tensor):
            key = (value.data_ptr(), value.dtype, value.shape, value.stride())
            if not value.numel() or key not in seen:
                seen[key] = self._to_host(value.detach())
            return seen[key]
        if isinstance(value, dict):
            # keeps the class, and the attributes that a module's state has
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
    """Gives a DeepSpeedEngine a checkpoint engine that adds its files to `snapshot` instead of writing them.

    `save_checkpoint` then writes no file while ranks wait for each other; a full disk there would hang the other ranks.
    """
    # here, because DeepSpeed chooses its accelerator when it is imported: see engine.prepare_deepspeed
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class SnapshotCheckpointEngine(TorchCheckpointEngine):
        """Saves into the snapshot; loads as DeepSpeed does."""

        def save(self, state_dict: Any, path: str) -> None:
            snapshot.add(state_dict, path)

    engine.checkpoint_engine = SnapshotCheckpointEngine()
    # DeepSpeed copies its conversion scripts past the checkpoint engine; `export` replaces them
    engine._copy_recovery_script = lambda _: None


def write_state_file(state: Any, path: Path) -> None:
    """Writes text, or a state by safetensors where the name ends so and by torch.save elsewhere.

    Raises:
        OSError: also where the libraries hide it behind errors of their own.
    """
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
            # torch's archive trips over its own position after a write that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _fits(buffer: Tensor, tensor: Tensor) -> bool:
    return buffer.shape == tensor.shape and buffer.dtype == tensor.dtype
