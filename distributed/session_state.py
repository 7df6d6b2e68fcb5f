"""What a checkpoint holds beside DeepSpeed's files: teacher, place in the stream, random states, configuration."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from data.stream import Stream, StreamState
from distributed.host_snapshot import HostSnapshot
from distributed.teacher import Teacher
from pupujepa.frontend import FrontendConfig

# DeepSpeed's tag: its own files, universal-convertible, lie in a folder of this name inside the checkpoint
ENGINE_FOLDER = "engine"
TEACHER_NAME = "teacher.safetensors"
STATE_NAME = "state.json"
CONFIG_NAME = "config.yaml"


def snapshot_state(
    snapshot: HostSnapshot, directory: Path, *, rank: int, stream: Stream, teacher: Teacher, config_yaml: str
) -> None:
    """Takes a copy of this rank's part; the file names tell the checkpoint store whose they are. All ranks together."""
    snapshot.add(random_states(), _random_path(directory, rank))
    of_teacher = teacher.state(keep=rank == 0)
    if rank == 0:
        snapshot.add(of_teacher, directory / TEACHER_NAME, owned=True)
        state = {"stream": asdict(stream.state()), "frontend": dict(stream.corpora.frontend)}
        snapshot.add(json.dumps(state, indent=2) + "\n", directory / STATE_NAME)
        snapshot.add(config_yaml, directory / CONFIG_NAME)


def read_state(directory: Path, *, rank: int, stream: Stream, teacher: Teacher) -> None:
    """Puts stream, teacher and random generators where `snapshot_state` found them.

    Raises:
        StreamError: the shards or the order's settings are others.
    """
    stream.seek(StreamState(**json.loads((directory / STATE_NAME).read_text())["stream"]))
    teacher.load(directory / TEACHER_NAME)
    path = _random_path(directory, rank)
    if path.exists():  # a larger world than the one that saved has ranks without one
        _set_random_states(torch.load(path, weights_only=True))


def read_frontend(directory: Path) -> FrontendConfig:
    """The front end of the shards that the checkpoint was trained on."""
    return FrontendConfig(**json.loads((directory / STATE_NAME).read_text())["frontend"])


def _random_path(directory: Path, rank: int) -> Path:
    return directory / f"random-rank-{rank:05d}.pt"


def random_states() -> dict[str, torch.Tensor]:
    """The states of the global generators of this process."""
    # nothing draws from the global generators today; a stage of the user's may
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_states(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
