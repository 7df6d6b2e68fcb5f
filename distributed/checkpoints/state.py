"""The checkpoints of a training run: their schedule, and their content beside DeepSpeed's files.

The content is the teacher, the position in the stream, the random states and the configuration.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data.stream.stream import Stream, StreamState
from distributed.checkpoints.manifest import Checkpoint
from distributed.checkpoints.snapshot import HostSnapshot, save_into
from distributed.checkpoints.store import CheckpointStore
from distributed.engine.teacher import Teacher
from distributed.processes.watchdog import CHECKPOINT, Whereabouts
from pupujepa.audio.log_mel import FrontendConfig

# DeepSpeed's tag: the folder of its files inside the checkpoint
ENGINE_FOLDER = "engine"
TEACHER_NAME = "teacher.safetensors"
STATE_NAME = "state.json"
CONFIG_NAME = "config.yaml"


@dataclass
class Checkpoints:
    """Saves a run between two steps; all ranks hold one and call its methods together.

    Attributes:
        config_yaml: of the experiment; saved in every checkpoint.
        zero_stage: of the engine; saved for loading.
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
        """Seconds of the longest save in this session."""
        return self.store.longest_save_s

    @property
    def last(self) -> Checkpoint | None:
        """The newest checkpoint that this session made or loaded."""
        return self.store.last

    @property
    def facts(self) -> dict[str, Any]:
        """World and stage for the manifest, which decide how to load the checkpoint."""
        return {"world_size": self.store.topology.world_size, "zero_stage": self.zero_stage}

    def save_if_due(self, step: int, *, skip: bool = False) -> None:
        """Advances the checkpoint in flight and begins the next if it is due, unless `skip`."""
        self.store.poll()
        if step % self.store.config.every == 0 and not skip:
            self.save(step, wait=not self.store.config.background)

    def save(self, step: int, *, wait: bool = True) -> None:
        """Makes the checkpoint of `step` finished steps, unless it exists.

        Args:
            wait: until it is published; if False, `save_if_due` publishes it after a later step.
        """
        self.whereabouts.at(CHECKPOINT, step)
        if not self.store.holds(step):
            self.store.begin(step, self.snapshot, self.facts)
        if wait:
            self.store.finish(step)

    def settle(self) -> int:
        """Waits for the checkpoint in flight, and returns the step of the newest one or 0."""
        self.store.poll(wait=True)
        return self.store.last.step if self.store.last else 0

    def snapshot(self, directory: Path) -> Callable[[], None]:
        """Copies this rank's part of a checkpoint, and returns a function that writes it, in any thread."""
        # the snapshot of a checkpoint in flight uses the same memory
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
    """Copies this rank's files beside DeepSpeed's; all ranks together.

    A file name shows its rank to the store.
    """
    snapshot.add(random_states(), _random_path(directory, rank))
    of_teacher = teacher.state(keep=rank == 0)
    if rank == 0:
        snapshot.add(of_teacher, directory / TEACHER_NAME, owned=True)
        state = {"stream": asdict(stream.state()), "frontend": dict(stream.corpora.frontend)}
        snapshot.add(json.dumps(state, indent=2) + "\n", directory / STATE_NAME)
        snapshot.add(config_yaml, directory / CONFIG_NAME)


def read_state(directory: Path, *, rank: int, stream: Stream, teacher: Teacher) -> None:
    """Restores stream, teacher and random generators from the files of `snapshot_state`.

    Raises:
        StreamError: the shards or the settings of the order have changed.
    """
    stream.seek(StreamState(**json.loads((directory / STATE_NAME).read_text())["stream"]))
    teacher.load(directory / TEACHER_NAME)
    path = _random_path(directory, rank)
    if path.exists():  # new ranks of a larger world have no file
        _set_random_states(torch.load(path, weights_only=True))


def read_frontend(directory: Path) -> FrontendConfig:
    """Reads the front end of the shards of the training."""
    return FrontendConfig(**json.loads((directory / STATE_NAME).read_text())["frontend"])


def _random_path(directory: Path, rank: int) -> Path:
    return directory / f"random-rank-{rank:05d}.pt"


def random_states() -> dict[str, torch.Tensor]:
    """Returns the states of torch's global generators."""
    # our code does not draw from them; a user's stage may
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_states(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
