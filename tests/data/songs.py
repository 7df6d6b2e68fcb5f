"""Small folders of audio for tests: tones in noise, of given lengths and formats."""

from pathlib import Path

import numpy as np
import soundfile


def write_song(path: Path, seconds: float, *, rate_hz: int = 24_000, channels: int = 1, seed: int = 0) -> None:
    """Writes a tone in noise; the format follows the suffix."""
    rng = np.random.default_rng(seed)
    times_s = np.arange(round(seconds * rate_hz)) / rate_hz
    tone_S = 0.4 * np.sin(2 * np.pi * rng.uniform(100, 3000) * times_s)
    audio_SC = tone_S[:, None] + rng.normal(0, 0.05, (len(times_s), channels))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio_SC, rate_hz)


def write_album(folder: Path) -> None:
    """Writes seven songs of 3 to 21 s: two folders, three formats, two sample rates, mono and stereo, odd names."""
    write_song(folder / "one" / "a song.wav", 21.0, seed=1)
    write_song(folder / "one" / "b.flac", 3.0, rate_hz=44_100, channels=2, seed=2)
    write_song(folder / "one" / "c.d.ogg", 7.5, seed=3)
    write_song(folder / "two" / "a song.wav", 12.34, rate_hz=16_000, seed=4)
    write_song(folder / "two" / "Größe.flac", 5.0, seed=5)
    write_song(folder / "top.flac", 4.0, channels=2, seed=6)
    write_song(folder / "top.wav", 9.0, seed=7)
