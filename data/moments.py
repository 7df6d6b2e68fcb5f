"""Mean and deviation of log-mel values, by band, in one pass."""

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Sums over all frames seen so far, float64, one per mel band."""

    def __init__(self, mel_bands: int):
        self.frames = 0
        self.sum_F = np.zeros(mel_bands)
        self.sum_of_squares_F = np.zeros(mel_bands)

    def add(self, mel_TF: NDArray[np.float32]) -> None:
        """Takes in the frames of a log-mel spectrogram [T, F]."""
        wide_TF = mel_TF.astype(np.float64)
        self.frames += len(mel_TF)
        self.sum_F += wide_TF.sum(0)
        self.sum_of_squares_F += np.square(wide_TF).sum(0)

    @property
    def band_means(self) -> NDArray[np.float64]:
        """Mean of each band."""
        return self.sum_F / self.frames

    @property
    def band_stds(self) -> NDArray[np.float64]:
        """Standard deviation of each band."""
        return np.sqrt(np.maximum(self.sum_of_squares_F / self.frames - np.square(self.band_means), 0.0))

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return float(self.band_means.mean())

    @property
    def std(self) -> float:
        """Standard deviation of all values."""
        mean_of_squares = self.sum_of_squares_F.sum() / (self.frames * len(self.sum_F))
        return float(np.sqrt(max(mean_of_squares - self.mean**2, 0.0)))
