"""When checkpoints are made, where they lie, which stay, and what follows when one cannot be written."""

from dataclasses import dataclass

from pupujepa.errors import UserError, require_known

STOP, GO_ON = "stop", "go_on"


@dataclass(frozen=True)
class CheckpointConfig:
    """Of a run.

    every: steps between checkpoints. keep: how many of the newest stay.
    keep_every: checkpoints whose step is a multiple of this stay for good; 0 for none.
    keep_best: the checkpoint that is best by this key of metrics.jsonl stays, such as "probe/instruments"; "-loss"
        takes the lowest. Empty for none.
    url: s3://bucket/prefix, or another directory; empty takes the run directory.
    background: write while training goes on, from a copy in host memory.
    on_failure: of a checkpoint that cannot be written: "stop" the run, or "go_on" and try again at the next.
    """

    every: int = 1000
    keep: int = 2
    keep_every: int = 0
    keep_best: str = ""
    url: str = ""
    background: bool = True
    on_failure: str = STOP

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise UserError(f"checkpoint.every={self.every} and checkpoint.keep={self.keep} must be at least 1")
        if self.keep_every % self.every:
            raise UserError(
                f"checkpoint.keep_every={self.keep_every} is no multiple of checkpoint.every={self.every}, so some of "
                f"those steps would have no checkpoint"
            )
        require_known("checkpoint.on_failure", self.on_failure, (STOP, GO_ON))
