"""A rank that writes down what it reads, in a process of its own, to be killed: for tests/data/test_ledger.py.

A line of the ledger is a micro-batch. A state is saved, as a checkpoint does it, when a step of `SAVE_EVERY` is over.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from data.stream.config import StreamConfig
from data.stream.corpora import read_corpora
from data.stream.stream import Stream, StreamState
from pupujepa.durable import atomic_file

SAVE_EVERY = 2


@dataclass(frozen=True)
class Session:
    """One start of a run: `world_size` ranks, from a saved state if there is one.

    dies_at: steps in whose middle the ranks are to be killed, by rank; None reads to the end.
    """

    number: int
    config: StreamConfig
    world_size: int
    total_steps: int
    saved: dict[str, Any] | None
    dies_at: tuple[int, ...] | None
    folder: Path

    def stream(self, rank: int) -> Stream:
        """Returns the stream of a rank, where the saved state is."""
        stream = Stream(
            self.config,
            manifest=read_corpora(self.config),
            rank=rank,
            world_size=self.world_size,
            micro_batch=1,
            total_steps=self.total_steps,
        )
        if self.saved is not None:
            stream.seek(StreamState(**self.saved))
        return stream

    def ledger(self, rank: int) -> Path:
        """The ledger of a rank."""
        return self.folder / f"ledger-{self.number}-{rank}.jsonl"

    def state(self, rank: int, step: int) -> Path:
        """The file of the state that a rank saved before `step`."""
        return self.folder / f"state-{self.number}-{rank}-{step}.json"

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yields the ledger lines of all ranks, without a line that the kill cut."""
        for rank in range(self.world_size):
            for line in self.ledger(rank).read_text().split("\n")[:-1]:
                yield json.loads(line)

    def last_saved(self) -> dict[str, Any]:
        """Returns the newest state that all ranks have saved, like a checkpoint of several ranks."""
        steps = range(SAVE_EVERY, self.total_steps + 1, SAVE_EVERY)
        whole = [step for step in steps if all(self.state(rank, step).exists() for rank in range(self.world_size))]
        states = [json.loads(self.state(rank, whole[-1]).read_text()) for rank in range(self.world_size)]
        assert all(state == states[0] for state in states), "the state is the same on all ranks"
        return states[0]


def read_and_write_down(session: Session, rank: int, ready: Connection) -> None:
    """Reads to the end, or to the middle of the step where this rank dies; there it reports and waits."""
    stream = session.stream(rank)
    with session.ledger(rank).open("a") as ledger:
        for batch in stream:
            line = {"step": batch.step, "epoch": batch.epoch, "uids": batch.uids, "draws": batch.draws.tolist()}
            ledger.write(json.dumps(line) + "\n")
            ledger.flush()
            if session.dies_at is not None and batch.step == session.dies_at[rank]:
                ready.send(batch.step)
                ready.recv()  # never comes
            step = stream.state().step
            if step > batch.step and step % SAVE_EVERY == 0:
                with atomic_file(session.state(rank, step)) as temporary:
                    temporary.write_text(json.dumps(asdict(stream.state())))


def next_session(session: Session, **changes: Any) -> Session:
    """Returns the session that resumes from the last saved state."""
    return replace(session, number=session.number + 1, saved=session.last_saved(), **changes)
