"""Faulty steps: a non-finite loss or gradient skips the update on all ranks.

Too many in a row stop the run. A skipped step changes no weight, no optimiser state and not the teacher. Its samples
are not drawn again, so all other steps keep their samples.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.stream.batches import Batch
from distributed.checkpoints.state import random_states
from distributed.run.directory import write_json
from distributed.watch.config import FaultConfig
from pupujepa.errors import UserError

logger = logging.getLogger(__name__)
# one rank's micro-batches of a step, each with its losses [B]
MicroBatches = Sequence[tuple[Batch, Tensor]]


class DivergedError(UserError):
    """The loss or the gradient is not finite any more."""


class FaultySteps:
    """Counter of consecutive faulty steps; every rank has one, and all count alike."""

    def __init__(self, config: FaultConfig, run_root: Path, *, rank: int):
        self._config, self._run_root, self._rank = config, run_root, rank
        self.in_row = 0

    def forget(self) -> None:
        """Resets the count after a good step."""
        self.in_row = 0

    def skip(self, step: int, what: str, micro_batches: MicroBatches, *, last_saved: int) -> None:
        """Counts and logs a faulty step.

        Args:
            what: reason in words, such as "the loss is nan".
            micro_batches: of this rank.
            last_saved: step of the newest checkpoint.

        Raises:
            DivergedError: too many in a row; each rank has written its inputs to the run directory.
        """
        self.in_row += 1  # alike on all ranks: a non-finite loss poisons the reduced gradients of all
        allowed = self._config.skipped_in_row
        bad = [uid for batch, loss_B in micro_batches for uid, loss in zip(batch.uids, loss_B.isfinite()) if not loss]
        if bad:
            logger.warning("step %d: no finite loss of %s", step, " ".join(bad[:20]))
        if self.in_row <= allowed:
            if self._rank == 0:
                logger.warning("step %d: %s: left out on all ranks (%d in a row)", step, what, self.in_row)
            return
        # the weights are not needed: the run, resumed from its newest checkpoint, reaches this step again
        path = self._run_root / f"diverged-step-{step:07d}-rank-{self._rank}.json"
        rows = [
            {
                "epoch": batch.epoch,
                "uids": batch.uids,
                "draws": batch.draws.tolist(),
                "crop_starts": batch.crop_starts.tolist(),
                "strategy": batch.strategy.tolist(),
                "loss": [str(loss) for loss in loss_B.tolist()],  # JSON has no NaN
            }
            for batch, loss_B in micro_batches
        ]
        write_json(path, {"step": step, "what": what, "in_row": self.in_row, "micro_batches": rows})
        tensors = [batch.tensors() for batch, _ in micro_batches]
        torch.save({"micro_batches": tensors, "random_states": random_states()}, path.with_suffix(".pt"))
        raise DivergedError(
            f"training diverged: {what} at step {step}, the last of {self.in_row} in a row (what went in is in "
            f"{path}); the checkpoint of step {last_saved} is from before; lower schedule.peak_lr or "
            f"optimizer.clip_norm in a new run, or use engine.precision=fp32"
        )
