"""The checkpoints of a training: when they are made, and what they hold beside DeepSpeed's files.

That is the teacher, the place in the stream, random states and the configuration.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data.stream.stream import Stream, StreamState
from distributed.checkpoints.snapshot import HostSnapshot, save_into
from distributed.checkpoints.store import Checkpoint, CheckpointStore
from distributed.engine.teacher import Teacher
from distributed.processes.watchdog import CHECKPOINT, Whereabouts
from pupujepa.audio.log_mel import FrontendConfig

# DeepSpeed's tag: its own files, universal-convertible, lie in a folder of this name inside the checkpoint
ENGINE_FOLDER = "engine"
TEACHER_NAME = "teacher.safetensors"
STATE_NAME = "state.json"
CONFIG_NAME = "config.yaml"


@dataclass
class Checkpoints:
    """Saves a run between two steps; all ranks hold one and call its methods together.

    Attributes:
        config_yaml: of the experiment; every checkpoint has it.
        zero_stage: of the engine, for those who load the checkpoint.
    """

    store: CheckpointStore
    engine: Any
    teacher: Teacher
    stream: Stream
    config_yaml: str
    zero_stage: int
    whereabouts: Whereabouts

    def __post_init__(self) -> None:
        self._snapshot = HostSnapshot(copies=self.store.config.background)
        save_into(self.engine, self._snapshot)

    @property
    def longest_save_s(self) -> float:
        """Seconds of the longest save of this session."""
        return self.store.longest_save_s

    @property
    def last(self) -> Checkpoint | None:
        """The newest checkpoint that was made or loaded."""
        return self.store.last

    @property
    def facts(self) -> dict[str, Any]:
        """Facts for the manifest: who can load the checkpoint."""
        return {"world_size": self.store.topology.world_size, "zero_stage": self.zero_stage}

    def save_if_due(self, step: int, *, skip: bool = False) -> None:
        """Goes on with the checkpoint in flight and, every `checkpoint.every` steps, begins the next.

        Args:
            skip: begin none now.
        """
        self.store.poll()
        if step % self.store.config.every == 0 and not skip:
            self.save(step, wait=not self.store.config.background)

    def save(self, step: int, *, wait: bool = True) -> None:
        """Makes the checkpoint of `step` finished steps, unless there is one.

        Args:
            wait: until it is published; otherwise `save_if_due` publishes it after a later step.
        """
        self.whereabouts.at(CHECKPOINT, step)
        if not self.store.holds(step):
            self.store.begin(step, self.snapshot, self.facts)
        if wait:
            self.store.finish(step)

    def settle(self) -> int:
        """Waits for the checkpoint in flight and returns the step of the newest one, 0 without any."""
        self.store.poll(wait=True)
        return self.store.last.step if self.store.last else 0

    def snapshot(self, directory: Path) -> Callable[[], None]:
        """Takes a snapshot of this rank's files of a checkpoint.

        Returns:
            What writes them, in any thread. The next snapshot waits for it.
        """
        # it uses the same memory
        self.store.poll(wait=True)
        self._snapshot.begin()
        self.engine.save_checkpoint(directory, tag=ENGINE_FOLDER, save_latest=False)
        snapshot_state(
            self._snapshot,
            directory,
            rank=self.store.topology.rank,
            stream=self.stream,
            teacher=self.teacher,
            config_yaml=self.config_yaml,
        )
        return self._snapshot.write


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
