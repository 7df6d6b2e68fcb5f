"""Settings of how a run is watched: linear probes, faulty steps, diagnostics, the guard."""

from dataclasses import dataclass

from distributed.processes.watchdog import StallLimits
from pupujepa.errors import UserError, require_known


@dataclass(frozen=True)
class ProbeConfig:
    """When the run is probed, and on what.

    every_steps: steps between probes; 0 leaves it to every_fraction.
    every_fraction: of the run between probes, such as 0.05; 0 never, unless every_steps says so.
    data: folder of a corpus that `python -m data scores` made; "" never.
    tracks: of the training split, and half as many of the validation split, fewer where there are fewer.
    """

    every_steps: int = 0
    every_fraction: float = 0.0
    data: str = ""
    tracks: int = 160

    def __post_init__(self) -> None:
        if self.every_steps < 0 or not 0 <= self.every_fraction <= 1:
            raise UserError(
                f"probe.every_steps={self.every_steps} must not be negative, and probe.every_fraction="
                f"{self.every_fraction} is a share of the run"
            )
        if self.every_steps and not self.data:
            raise UserError(
                f"probe.every_steps={self.every_steps} asks for probes, but there is nothing to probe on; make a "
                f"labelled corpus with `python -m data scores corpora/scores` and set probe.data=corpora/scores"
            )
        if self.tracks < 1:
            raise UserError(f"probe.tracks={self.tracks} must be at least 1")

    def interval(self, total_steps: int) -> int:
        """Returns the steps between probes of a run; 0 never."""
        if not self.data:
            return 0
        return self.every_steps or (max(1, round(self.every_fraction * total_steps)) if self.every_fraction else 0)


# a rank that stands still is to speak before the collectives of the others fail, which end them without a word
_SHARE_OF_TIMEOUT = 0.8


@dataclass(frozen=True)
class FaultConfig:
    """skipped_in_row: steps in a row whose loss or gradient is no number that are left out before the run stops.

    0 stops at the first. stall_s: a rank that has stood in one place of a step for so many seconds is ended, with its
    stacks; 0 takes what holds outside of steps, and in the first one, which compiles: four fifths of engine.timeout_s.
    """

    skipped_in_row: int = 5
    stall_s: float = 0.0

    def __post_init__(self) -> None:
        if self.skipped_in_row < 0:
            raise UserError(f"faults.skipped_in_row={self.skipped_in_row} must be 0 (stop at once) or more")
        if self.stall_s < 0:
            raise UserError(f"faults.stall_s={self.stall_s} must be 0 (follow engine.timeout_s) or seconds")

    def limits(self, collective_timeout_s: float) -> "StallLimits":
        """Returns how long a rank may stand in one place, given how long collectives wait for it."""
        elsewhere_s = _SHARE_OF_TIMEOUT * collective_timeout_s
        return StallLimits(self.stall_s or elsewhere_s, elsewhere_s)


@dataclass(frozen=True)
class DiagnosticsConfig:
    """When the model is looked at, and on how much. docs/watching.md tells what it costs and what it takes.

    every: steps between diagnostics, 0 never.
    clips: of which there is one crop for all diagnostics but LiDAR and the variances between and within clips.
    crops_per_clip: for these two; 10 are usual for LiDAR, 1 leaves them out.
    lidar_every: diagnostics, each so many-th of which has these two; so has the last of a run.
    """

    every: int = 1000
    clips: int = 24
    crops_per_clip: int = 10
    lidar_every: int = 1

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UserError(f"diagnostics.every={self.every} must be 0 (never) or a number of steps")
        if self.clips < 2 or self.crops_per_clip < 1 or self.lidar_every < 1:
            raise UserError(
                f"diagnostics.clips={self.clips} must be at least 2, crops_per_clip={self.crops_per_clip} and "
                f"lidar_every={self.lidar_every} at least 1"
            )

    def takes_all_crops(self, step: int, *, total_steps: int) -> bool:
        """Whether the diagnostics after so many steps have LiDAR and the variances."""
        return step % (self.every * self.lidar_every) == 0 or step == total_steps


WARN, SNAPSHOT, STOP = ACTIONS = ("warn", "snapshot", "stop")


# of the in-loop probes
PROBE_MEAN = "probe/mean"


@dataclass(frozen=True)
class GuardConfig:
    """When there is an alarm, and what follows. All numbers are our choice; the reasons stand beside them.

    action: "warn" says it; "snapshot" also keeps a checkpoint with the diagnostics and what pictures are made from;
        "stop" also ends the run, with exit code 87, before more GPU hours are spent on it.
    std_below: of the teacher's normalised spread, which is 1 for isotropic features. Features that share one vector as
        large as all else together have 0.7; at 0.3 a tenth of a feature's energy is its own.
    cosine_above: of the teacher's mean pairwise cosine; the same collapse seen by angles, 0.9 at a spread of 0.3.
    fall: share of the running maximum that effective rank or explained variance may lose while the loss moves. Between
        two diagnostics of a healthy run they move by a few per cent.
    loss_fall, loss_fall_steps: a loss that falls by this share within so many steps, while rank or explained variance
        has fallen, has become small for nothing.
    loss_rise: a loss that is this far above its minimum, while rank, explained variance or the probes have fallen, is
        no longer being learnt. The loss alone may rise: a teacher that gets richer is harder to predict.
    probe_fall: how far the mean of the in-loop probes may lie below its maximum; twice what one of them wavers by.
    unexplained_below, unexplained_after, unexplained_steps: explained variance that is not above this once this share
        of the run, and so many steps, are over. A prediction that is no better than a constant has learnt nothing;
        every run begins there, and one of a few hundred steps may end there.
    distance_below: relative distance of teacher and student. Any momentum keeps them apart by at least one update,
        1e-4 or more; equal they are only without one, and then nothing keeps the targets from following.
    max_snapshots: over the run; each holds a whole checkpoint.
    """

    action: str = SNAPSHOT
    std_below: float = 0.3
    cosine_above: float = 0.9
    fall: float = 0.3
    loss_fall: float = 0.15
    loss_fall_steps: int = 2000
    loss_rise: float = 0.3
    probe_fall: float = 0.05
    unexplained_below: float = 0.0
    unexplained_after: float = 0.3
    unexplained_steps: int = 400
    distance_below: float = 1e-6
    max_snapshots: int = 3

    def __post_init__(self) -> None:
        require_known("guard.action", self.action, ACTIONS)
        for name in ("fall", "loss_fall", "unexplained_after"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"guard.{name}={getattr(self, name)} is a share and must lie between 0 and 1")
        if min(self.unexplained_steps, self.loss_fall_steps, self.max_snapshots) < 0 or self.loss_rise <= 0:
            raise UserError("guard: steps and counts must not be negative, and loss_rise must be positive")
