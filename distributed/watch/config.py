"""Settings of the watch: linear probes, faulty steps, diagnostics, the guard."""

from dataclasses import dataclass

from distributed.processes.watchdog import StallLimits
from pupujepa.errors import UserError, require_known


@dataclass(frozen=True)
class ProbeConfig:
    """Linear probes in training.

    every_steps: steps between probes; 0 leaves it to every_fraction.
    every_fraction: fraction of the run between probes, such as 0.05; 0 never, unless every_steps is set.
    data: folder of a corpus of `python -m data scores`; "" never.
    tracks: at most this many of the training split, and half as many of the validation split.
    """

    every_steps: int = 0
    every_fraction: float = 0.0
    data: str = ""
    tracks: int = 160

    def __post_init__(self) -> None:
        if self.every_steps < 0 or not 0 <= self.every_fraction <= 1:
            raise UserError(
                f"probe.every_steps={self.every_steps} must not be negative, and probe.every_fraction="
                f"{self.every_fraction} must be between 0 and 1"
            )
        if self.every_steps and not self.data:
            raise UserError(
                f"probe.every_steps={self.every_steps} has no data; make a labelled corpus with `python -m data "
                f"scores corpora/scores` and set probe.data=corpora/scores"
            )
        if self.tracks < 1:
            raise UserError(f"probe.tracks={self.tracks} must be at least 1")

    def interval(self, total_steps: int) -> int:
        """Returns the steps between probes of a run; 0 never."""
        if not self.data:
            return 0
        return self.every_steps or (max(1, round(self.every_fraction * total_steps)) if self.every_fraction else 0)


# a stalled rank must report before the collectives of the others fail
_SHARE_OF_TIMEOUT = 0.8


@dataclass(frozen=True)
class FaultConfig:
    """skipped_in_row: consecutive non-finite steps to skip before stopping; 0 stops at the first.

    stall_s: seconds in one place of a step after which a stalled rank ends with its stacks; 0 takes four fifths of
    engine.timeout_s, which holds outside of steps and in the first step, which compiles.
    """

    skipped_in_row: int = 5
    stall_s: float = 0.0

    def __post_init__(self) -> None:
        if self.skipped_in_row < 0:
            raise UserError(f"faults.skipped_in_row={self.skipped_in_row} must be 0 (stop at once) or more")
        if self.stall_s < 0:
            raise UserError(f"faults.stall_s={self.stall_s} must be 0 (follow engine.timeout_s) or seconds")

    def limits(self, collective_timeout_s: float) -> "StallLimits":
        """Returns the limits of the watchdog for the timeout of the collectives."""
        elsewhere_s = _SHARE_OF_TIMEOUT * collective_timeout_s
        return StallLimits(self.stall_s or elsewhere_s, elsewhere_s)


@dataclass(frozen=True)
class DiagnosticsConfig:
    """Diagnostics on the fixed crops; docs/watching.md has their cost.

    every: steps between diagnostics, 0 never.
    clips: clips with one crop each, for all diagnostics except LiDAR and the variances between and within clips.
    crops_per_clip: crops of a clip for LiDAR and the variances; 10 are usual, 1 leaves them out.
    lidar_every: compute LiDAR and the variances on every n-th diagnostic, and on the last.
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
        """Returns True if the diagnostics after `step` steps have LiDAR and the variances."""
        return step % (self.every * self.lidar_every) == 0 or step == total_steps


WARN, SNAPSHOT, STOP = ACTIONS = ("warn", "snapshot", "stop")


# metrics key of the linear probes in training
PROBE_MEAN = "probe/mean"


@dataclass(frozen=True)
class GuardConfig:
    """Thresholds and action of the guard. All numbers are our choice, with the reasons beside them.

    action: "warn"; "snapshot" also keeps a checkpoint with the diagnostics and the data of pictures; "stop" also ends
        the run with exit code 87, to save GPU hours.
    std_below: alarm below this normalised spread of the teacher, which is 1 for isotropic features. At 0.7 half of the
        energy is one shared vector; at 0.3 a tenth of a feature's energy is its own.
    cosine_above: alarm above this mean pairwise cosine of the teacher; the same collapse by angles, 0.9 at spread 0.3.
    fall: share of the running maximum that effective rank or explained variance may lose while the loss moves. Healthy
        runs move by a few per cent between two diagnostics.
    loss_fall, loss_fall_steps: alarm if the loss falls by this share within so many steps while rank or explained
        variance has fallen: the loss became small without learning.
    loss_rise: alarm if the loss is this share above its minimum while rank, explained variance or the probes have
        fallen. The loss alone may rise: a richer teacher is harder to predict.
    probe_fall: alarm if the mean of the probes is this far below its maximum; twice the noise of one probe.
    unexplained_below, unexplained_after, unexplained_steps: alarm if explained variance is not above the first after
        this share of the run and so many steps. Every run begins no better than a constant, and a run of a few hundred
        steps may end there.
    distance_below: alarm below this relative distance of teacher and student. Any momentum keeps it at 1e-4 or more;
        without momentum the targets follow the student.
    max_snapshots: of the run; each holds a whole checkpoint.
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
                raise UserError(f"guard.{name}={getattr(self, name)} is a share and must be between 0 and 1")
        if min(self.unexplained_steps, self.loss_fall_steps, self.max_snapshots) < 0 or self.loss_rise <= 0:
            raise UserError("guard: steps and counts must not be negative, and loss_rise must be positive")
