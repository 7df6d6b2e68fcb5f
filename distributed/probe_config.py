"""Settings of the probes that a run is measured with while it trains; see in_loop_probe.py."""

from dataclasses import dataclass

from pupujepa.errors import UserError


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
