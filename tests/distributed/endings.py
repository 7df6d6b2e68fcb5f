"""Runs that are ended at random moments, in every way that a training can end, and continued by the same command.

`python -m benchmarks endings` plays as many as wanted; the tests play one of each kind.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed.run.directory import RunDirectory
from distributed.run.log import read_metrics
from tests.distributed.fault_cases import Site, start_ranks

# what ends a run, and the exit codes of the rank that it strikes and of the other one
KINDS = {
    "SIGKILL": (-9, 86),
    "SIGTERM": (85, 85),
    "SIGINT": (85, 85),
    "SIGHUP": (85, 85),
    "killed worker": (86, 86),
    "full disk": (2, 2),
}
STEPS = 60
# an ending at most so many steps after the newest checkpoint, and within so many seconds after its step has begun
_STEPS_AHEAD, _WITHIN_S = 5, 0.3
SETTINGS = (f"train.steps={STEPS}", "checkpoint.every=3", "stream.workers=1", "faults.stall_s=0")


@dataclass(frozen=True)
class Ended:
    """One ending: its kind, the rank and the step it struck, and how the ranks ended."""

    kind: str
    rank: int
    step: int
    codes: tuple[int, ...]
    said: tuple[str, ...]

    @property
    def is_as_expected(self) -> bool:
        """Whether both ranks ended as they should."""
        struck, other = KINDS[self.kind]
        return self.codes == ((struck, other) if self.rank == 0 else (other, struck))


def losses_of(run_dir: Path) -> dict[int, float]:
    """The losses of a run, by step."""
    return {row["step"]: row["loss"] for row in read_metrics(RunDirectory(run_dir).metrics) if "loss" in row}


def straight_losses(site: Site) -> dict[int, float]:
    """The losses of a run that nothing ends."""
    codes, said = start_ranks(site, None, SETTINGS)
    assert codes == (0, 0), said
    return losses_of(site.run_dir)


def end_and_continue(site: Site, kinds: Sequence[str], *, seed: int) -> tuple[list[Ended], dict[int, float]]:
    """Ends a run in each of these ways in turn, then lets it finish; returns the endings and the losses."""
    rng = random.Random(seed)
    ended = []
    for kind in kinds:
        # the disk of the log is that of rank 0
        rank = 0 if kind == "full disk" else rng.randrange(2)
        step = newest_checkpoint(site.run_dir) + rng.randrange(1, _STEPS_AHEAD)
        fault = {"rank": rank, "steps": [step], "what": kind, "within_s": _WITHIN_S}
        ended.append(Ended(kind, rank, step, *start_ranks(site, fault, SETTINGS)))
    codes, said = start_ranks(site, None, SETTINGS)
    assert codes == (0, 0), said
    return ended, losses_of(site.run_dir)


def newest_checkpoint(run_dir: Path) -> int:
    """The step of a run's newest checkpoint; 0 without any."""
    names = (path.name for path in (run_dir / "checkpoints").glob("step-*[0-9]"))
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def rounds(count: int, *, seed: int) -> list[list[str]]:
    """`count` endings in rounds of one run each: every kind as often, in a random order."""
    rng, kinds = random.Random(seed), list(KINDS)
    shuffled = [kind for _ in range(-(-count // len(kinds))) for kind in rng.sample(kinds, len(kinds))][:count]
    return [shuffled[first : first + len(kinds)] for first in range(0, count, len(kinds))]
