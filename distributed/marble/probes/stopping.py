"""Early stopping and the epoch that a probe keeps, for all heads of a bank at once.

Protocol clean keeps the epoch with the best monitor. Protocol marble follows MARBLE v2: its checkpoint callback has no
monitor, so it tests the weights of the last epoch before the early stop. A plateau of the monitor lowers the learning
rate (torch's ReduceLROnPlateau, mode max, relative threshold 1e-4).
"""

import numpy as np

from distributed.marble.tasks.tasks import ProbeFit, Protocol

_PLATEAU_THRESHOLD = 1e-4
# torch's `eps`: smaller changes of the rate are skipped
_LEAST_FALL = 1e-8


class StoppingRule:
    """Stopping rule with one monitor per head; larger is better.

    Args:
        shape: shape of the heads; the last dimension is the learning rates.

    Attributes:
        rate: factor on each head's learning rate.
        running: heads that still train.
        best: the best monitor so far.
        kept_epoch: the epoch whose weights each head keeps, counted from 0.
    """

    def __init__(self, shape: tuple[int, ...], *, fit: ProbeFit, protocol: Protocol):
        self._fit = fit
        self._protocol = protocol
        self.rate = np.ones(shape)
        self.running = np.ones(shape, dtype=bool)
        self.best = np.full(shape, -np.inf)
        self.kept_epoch = np.zeros(shape, dtype=np.int64)
        self._waited = np.zeros(shape, dtype=np.int64)
        self._plateau_best = np.full(shape, -np.inf)
        self._plateau_waited = np.zeros(shape, dtype=np.int64)

    def update(self, epoch: int, monitor: np.ndarray) -> np.ndarray:
        """Takes the monitors of an epoch and returns a mask of the heads whose current weights to keep."""
        was_running = self.running.copy()
        improved = was_running & (monitor > self.best)
        self.best = np.where(improved, monitor, self.best)
        self._waited = np.where(improved, 0, self._waited + 1)
        keep = was_running if self._protocol == "marble" else improved
        self.kept_epoch[keep] = epoch
        if self._protocol == "marble":
            self._lower_rates(monitor)
        self.running = was_running & (self._waited < self._fit.patience) & np.isfinite(monitor)
        return keep

    def _lower_rates(self, monitor: np.ndarray) -> None:
        improved = monitor > self._plateau_best * (1 + _PLATEAU_THRESHOLD)
        self._plateau_best = np.where(improved, monitor, self._plateau_best)
        self._plateau_waited = np.where(improved, 0, self._plateau_waited + 1)
        tired = self._plateau_waited > self._fit.plateau_patience  # strictly more, as in torch
        factor = self._fit.plateau_factor
        fall = self.rate * self._fit.learning_rates * (1 - factor)
        self.rate[tired & (fall > _LEAST_FALL)] *= factor
        self._plateau_waited[tired] = 0
