"""Checkpoints in two phases: each rank writes and digests its files, then rank 0 commits.

Loading verifies the digests. DeepSpeed alone names a checkpoint `latest` before the files of all ranks exist, and loads
a file with a flipped bit. Here a checkpoint has a temporary name until all ranks have reported their digests and the
manifest is written. A kill at any moment leaves the previous checkpoint whole. All ranks verify and agree before any of
them changes the model.

A thread of each rank writes while training continues. The ranks compare their progress between two steps (`poll`), so
they publish, or stop after a failure, at the same step.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distributed.checkpoints.config import STOP, CheckpointConfig, best_step, kept
from distributed.checkpoints.fencing import Fence
from distributed.checkpoints.manifest import (
    Checkpoint,
    CheckpointError,
    checkpoint_at,
    digests_of_rank,
    parse_manifest,
    render_manifest,
    step_name,
)
from distributed.checkpoints.shared_directory import CheckpointPlace, SharedDirectory
from distributed.processes.collectives import SupersededError, TaskOutcome, all_are, from_all, of_first, outcome_of
from distributed.processes.topology import Topology
from distributed.run.log import read_metrics
from pupujepa.durable import sync

_WAIT_S = 0.02  # between two looks at the threads, while training waits

logger = logging.getLogger(__name__)
# writes a rank's files into a directory, or returns a function that writes them in a thread
Write = Callable[[Path], Callable[[], None] | None]


class BackgroundTask:
    """A thread that runs one task after the other; errors that a user can mend become a TaskOutcome."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[TaskOutcome] | None = None

    @property
    def is_done(self) -> bool:
        """True if the started task has ended."""
        return self._running is not None and self._running.done()

    def start(self, task: Callable[[], dict[str, Any]]) -> None:
        """Starts a task; the previous one must have ended."""
        self._running = self._thread.submit(outcome_of, task)

    def outcome(self) -> TaskOutcome:
        """Waits for the task and returns its outcome; raises errors that are faults of the program."""
        assert self._running is not None, "no task was started"
        outcome = self._running.result()
        self._running = None
        return outcome


@dataclass
class _Flight:
    """A checkpoint in flight: each rank writes its files, then rank 0 commits."""

    step: int
    facts: dict[str, Any]
    begun: float
    committing: bool = False


class CheckpointStore:
    """The checkpoints of one run.

    All methods except `steps` and `holds` are collective: all ranks call them together.

    Args:
        place: a place, or a directory that all ranks share.
        keep: number of newest checkpoints to keep, without `config`.
        metrics: the run's metrics.jsonl, for `keep_best`.
    """

    def __init__(
        self,
        place: CheckpointPlace | Path,
        topology: Topology,
        *,
        keep: int = 2,
        config: CheckpointConfig | None = None,
        metrics: Path | None = None,
    ):
        self.place: CheckpointPlace = SharedDirectory(place) if isinstance(place, Path) else place
        self.topology = topology
        self.fence: Fence | None = None
        self.config = config or CheckpointConfig(keep=keep)
        self.last: Checkpoint | None = None
        self.refused: list[str] = []
        self.longest_save_s = 0.0
        self._metrics = metrics
        self._task = BackgroundTask()
        self._flight: _Flight | None = None

    @property
    def root(self) -> Path:
        """The directory that all ranks share."""
        assert isinstance(self.place, SharedDirectory), "an object store has no path"
        return self.place.root

    def write_as(self, fence: Fence) -> None:
        """Writes as this generation of the run from now on; without it the store is not fenced."""
        self.fence, self.place.generation = fence, fence.generation

    def save(self, step: int, write: Write, facts: dict[str, Any]) -> Checkpoint:
        """Makes the checkpoint of `step` and waits for it."""
        self.begin(step, write, facts)
        self.finish(step)
        assert self.last is not None
        return self.last

    def begin(self, step: int, write: Write, facts: dict[str, Any]) -> None:
        """Begins the checkpoint of `step` finished steps, after waiting for one in flight.

        Args:
            write: called on every rank with the temporary directory; see `Write`. Files named `rank-<r>` or DeepSpeed's
                `zero_pp_rank_<r>` belong to that rank, all others to rank 0. Collectives belong into the call, work
                that can fail on a single rank into the returned function.
            facts: entries of the manifest.

        Raises:
            CheckpointError: nothing can be written, or the directory is not shared.
        """
        if self._flight is not None:
            logger.info("waiting for %s, which is still being written", step_name(self._flight.step))
            self.poll(wait=True)
        begun = time.monotonic()
        generation = {"generation": self.fence.generation} if self.fence else {}
        # rank 0 makes the directory before the others look for it; both outcomes are shared, so no rank waits alone
        for task in (partial(self._prepare, step), partial(self._join, step)):
            if failure := next((o for o in from_all(outcome_of(task)) if o.error), None):
                self._failed(step, failure)
                return
        rest = write(self.place.temporary(step))
        self._flight = _Flight(step, {"step": step, **generation, **facts}, begun)
        self._task.start(partial(self._written, step, rest))

    def poll(self, *, wait: bool = False) -> None:
        """Advances the checkpoint in flight if all ranks are ready; call it after every step.

        Args:
            wait: until it is published.

        Raises:
            CheckpointError: a rank could not write, and checkpoint.on_failure=stop.
            SupersededError: the run was started again.
        """
        while self._flight is not None:
            if not all_are(self._task.is_done):
                if not wait:
                    return
                # waiting inside a collective would exceed its timeout on a slow disk
                time.sleep(_WAIT_S)
                continue
            of_ranks = from_all(self._task.outcome())
            flight, failure = self._flight, next((o for o in of_ranks if o.error), None)
            if failure or flight.committing:
                self._flight = None
                self._failed(flight.step, failure) if failure else self._landed(flight, of_ranks[0].result["manifest"])
                return
            files = {name: entry for o in of_ranks for name, entry in sorted(o.result.items())}
            flight.committing = True
            self._task.start(partial(self._committed, flight, files) if self.topology.is_first else dict)

    def finish(self, step: int) -> None:
        """Waits for the checkpoint in flight; call it before the run ends or stops.

        Raises:
            CheckpointError: the checkpoint of `step` could not be made, for any checkpoint.on_failure.
        """
        self.poll(wait=True)
        if not self.holds(step):
            raise CheckpointError(
                f"{step_name(step)} could not be made (the warning above says why), so the steps since {self._older()} "
                f"would be lost; remedy it and run the same command again"
            )

    def holds(self, step: int) -> bool:
        """Returns True if `step` is in flight, or is the last checkpoint made or loaded."""
        return step == (self._flight.step if self._flight else self.last.step if self.last else None)

    def newest_whole(self) -> Checkpoint | None:
        """Returns the newest whole checkpoint, or None without any; warns of damaged ones.

        Raises:
            CheckpointError: all checkpoints are damaged, or they cannot be reached.
        """
        self.refused = []
        there = of_first(self._recovered)
        if there.error:
            raise CheckpointError(f"the checkpoints cannot be listed: {there.error}")
        for step in there.result["steps"]:
            found = self.verified(step)
            if isinstance(found, Checkpoint):
                self.last = found
                return found
            self.refused.append(found)
            if self.topology.is_first:
                logger.warning("%s; falling back to the previous checkpoint", found)
        if self.refused:
            raise CheckpointError(
                f"no checkpoint is whole (the oldest: {self.refused[-1]}), and training does not start from zero over "
                f"a run that exists; restore a copy, or choose another --run-dir"
            )
        return None

    def verified(self, step: int) -> Checkpoint | str:
        """Returns the checkpoint of `step`, or a sentence about its damage.

        Raises:
            CheckpointError: it cannot be reached, read or understood now.
        """
        verdicts = from_all(outcome_of(partial(self._verdict, step)))
        if error := next((v.error for v in verdicts if v.error), ""):
            raise CheckpointError(f"{step_name(step)} cannot be verified: {error}")
        damage = next((v.result["damage"] for v in verdicts if v.result["damage"]), "")
        return damage or checkpoint_at(self.place.path(step))

    def steps(self) -> list[int]:
        """Returns the steps of all committed checkpoints, whole or not, newest first."""
        return self.place.steps()

    def _recovered(self) -> dict[str, Any]:
        self.place.recover()
        return {"steps": self.steps()}

    def _prepare(self, step: int) -> dict[str, Any]:
        if self.topology.is_first:
            if self.fence is not None:
                # training waits here, so ask only the file system; the commit asks everywhere
                self.fence.near.require_current()
            self.place.prepare(step)
        return {}

    def _verdict(self, step: int) -> dict[str, Any]:
        return {"damage": self.place.damage(step, self.topology)}

    def _join(self, step: int) -> dict[str, Any]:
        self.place.join(step)
        return {}

    def _written(self, step: int, rest: Callable[[], None] | None) -> dict[str, Any]:
        """Writes, digests and delivers this rank's files, in the thread."""
        if rest is not None:
            rest()
        directory = self.place.temporary(step)
        files = digests_of_rank(directory, rank=self.topology.rank, world_size=self.topology.world_size)
        self.place.deliver(step, files)
        return files

    def _committed(self, flight: _Flight, files: dict[str, Any]) -> dict[str, Any]:
        """Publishes the checkpoint, then deletes those that retention drops, in rank 0's thread."""
        manifest = render_manifest(flight.facts, files)
        if self.fence is not None:
            self.fence.require_current()
        if self._metrics is not None and self._metrics.exists():
            sync(self._metrics)  # or a power failure could take rows from before the checkpoint
        self.place.commit(flight.step, manifest, names=files)
        there = self.place.steps()
        for step in sorted(set(there) - self._kept(there)):
            try:
                self.place.delete(step)
            except OSError as error:
                raise CheckpointError(
                    f"it was written, but the old {step_name(step)} cannot be deleted ({error})"
                ) from error
        return {"manifest": manifest}

    def _kept(self, there: list[int]) -> set[int]:
        config = self.config
        rows = read_metrics(self._metrics) if config.keep_best and self._metrics else []
        best = best_step(rows, config.keep_best, among=there)
        return kept(there, keep=config.keep, keep_every=config.keep_every, best=best)

    def _landed(self, flight: _Flight, text: str) -> None:
        manifest = parse_manifest(text.encode(), step_name(flight.step))
        self.last = Checkpoint(self.place.path(flight.step), flight.step, manifest.facts, manifest.digest)
        self._discard(flight.step)
        seconds = time.monotonic() - flight.begun
        self.longest_save_s = max(self.longest_save_s, seconds)
        logger.info("saved %s in %.1f s", self.last.name, seconds)

    def _failed(self, step: int, failure: TaskOutcome) -> None:
        self._discard(step)
        if failure.superseded:
            raise SupersededError(failure.error)
        if self.fence is not None:
            # maybe a newer start has removed the files of this one
            self.fence.near.require_current()
        said = f"{step_name(step)} could not be written: {failure.error}; the newest whole one is {self._older()}"
        if self.config.on_failure == STOP:
            raise CheckpointError(f"{said}; remedy this and run the same command again, which continues from there")
        if self.topology.is_first:
            logger.warning("%s; training continues, and the next checkpoint is tried when it is due", said)

    def _discard(self, step: int) -> None:
        if self.topology.local_rank == 0:
            self.place.discard(step)

    def _older(self) -> str:
        return self.last.name if self.last else "none, the run would begin again"
