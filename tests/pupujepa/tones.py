"""Tones for the tests."""

import numpy as np


def tone(seconds: float, rate: int = 24_000, hz: float = 330) -> np.ndarray:
    """Returns a sine of amplitude 0.4 as mono samples."""
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
