"""Settings of a run for what goes wrong while it trains: steps whose loss is no number, ranks that stand still."""

from dataclasses import dataclass

from pupujepa.errors import UserError

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
class StallLimits:
    """How long a rank may stand in one place: of a step but the first, and elsewhere (start, checkpoint, ...)."""

    step_s: float
    elsewhere_s: float
