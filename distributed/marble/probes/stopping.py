"""When a probe stops and which epoch it keeps, for all heads of a bank at once.

Protocol clean keeps the epoch with the best monitor. Protocol marble does what MARBLE v2 does: its checkpoint callback
monitors nothing, so the weights that are tested are those of the last epoch before the early stop; a plateau of the
monitor lowers the learning rate (torch's ReduceLROnPlateau, mode max, relative threshold 1e-4).
"""

import numpy as np

from distributed.marble.tasks.tasks import ProbeFit, Protocol

_PLATEAU_THRESHOLD = 1e-4
# torch's `eps`: a rate that would fall by less than this stays
_LEAST_FALL = 1e-8


class StoppingRule:
    """Follows one monitor per head; larger is better.

    Args:
        shape: of the heads; its last dimension is the learning rates.

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
        """Takes the monitors of an epoch and returns the heads whose present weights are to be kept."""
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
        with np.errstate(invalid="ignore"):
            threshold = np.where(np.isinf(self._plateau_best), -np.inf, self._plateau_best * (1 + _PLATEAU_THRESHOLD))
        improved = monitor > threshold
        self._plateau_best = np.where(improved, monitor, self._plateau_best)
        self._plateau_waited = np.where(improved, 0, self._plateau_waited + 1)
        tired = self._plateau_waited > self._fit.plateau_patience
        factor = self._fit.plateau_factor
        fall = self.rate * self._fit.learning_rates * (1 - factor)
        self.rate[tired & (fall > _LEAST_FALL)] *= factor
        self._plateau_waited[tired] = 0
