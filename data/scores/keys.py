"""Key names, transposition, and the key of a set of notes."""

import functools

import numpy as np

TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
MODES = ("major", "minor")

# (major, minor), each from the tonic upwards. Temperley's revision of the probe-tone ratings (The Cognition of Basic
# Musical Structures, 2001, as in the Humdrum toolkit) and Aarden's counts in folk songs (Dynamic Melodic Expectancy,
# 2003). The first fits tunes better, the second chorales and quartets; their mean fits both.
_TEMPERLEY = (
    (5.0, 2.0, 3.5, 2.0, 4.5, 4.0, 2.0, 4.5, 2.0, 3.5, 1.5, 4.0),
    (5.0, 2.0, 3.5, 4.5, 2.0, 4.0, 2.0, 4.5, 3.5, 2.0, 1.5, 4.0),
)
_AARDEN = (
    (17.766, 0.146, 14.927, 0.160, 19.805, 11.359, 0.291, 22.062, 0.146, 8.155, 0.233, 4.951),
    (18.265, 0.738, 14.050, 16.860, 0.702, 14.436, 0.702, 18.616, 4.566, 1.932, 7.376, 1.756),
)


def key_name(tonic: int, mode: str) -> str:
    """Returns a key in the spelling of `mir_eval.key`, such as "Eb minor"; tonic is a pitch class, 0 = C."""
    assert mode in MODES, mode
    return f"{TONICS[tonic % 12]} {mode}"


def tonic_of(key: str) -> int:
    """Returns the pitch class of a key's tonic."""
    return TONICS.index(key.split(" ")[0])


def mode_of(key: str) -> str:
    """Returns "major" or "minor"."""
    return key.split(" ")[1]


def transpose_key(key: str, semitones: int) -> str:
    """Returns the key `semitones` higher."""
    return key_name(tonic_of(key) + semitones, mode_of(key))


def estimate_key(pitches: np.ndarray, *, weights: np.ndarray) -> str | None:
    """Returns the key whose profile correlates best with the pitch classes, or None if all are equal.

    Args:
        pitches: MIDI numbers.
        weights: of each pitch, such as its duration.
    """
    histogram = np.bincount(np.asarray(pitches) % 12, weights=weights, minlength=12)
    if np.ptp(histogram) == 0:
        return None
    histogram = (histogram - histogram.mean()) / histogram.std()  # so that the product is a correlation
    best = int(np.argmax(_profiles() @ histogram))
    return key_name(best % 12, MODES[best // 12])


@functools.cache
def _profiles() -> np.ndarray:
    rows = np.zeros((24, 12))  # 12 major keys, then 12 minor keys
    for table in (_TEMPERLEY, _AARDEN):
        for mode, profile in enumerate(np.asarray(table)):
            standard = (profile - profile.mean()) / profile.std()
            rows[12 * mode : 12 * mode + 12] += [np.roll(standard, tonic) for tonic in range(12)]
    return rows
