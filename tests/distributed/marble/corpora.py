"""Tiny labelled corpora: triads whose root and mode are the key, clicks whose times are the beats."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from distributed.marble.tasks.tasks import KEYS

RATE_HZ = 24_000


@dataclass(frozen=True)
class Recipe:
    """Size of a corpus; the split follows the piece: of eight, five train, one validates and two test."""

    pieces: int = 16
    takes: int = 1
    duration_s: float = 10.24
    seed: int = 0


def make_corpus(folder: Path, recipe: Recipe) -> Path:
    """Writes tracks.jsonl and its audio, and returns the folder."""
    (folder / "audio").mkdir(parents=True)
    rng = np.random.default_rng(recipe.seed)
    rows = []
    for piece in range(recipe.pieces):
        for take in range(recipe.takes):
            uid = f"piece{piece:03d}-take{take}"
            labels = _labels(piece, rng, recipe.duration_s)
            audio = _sound(labels, rng, recipe.duration_s)
            # 16 bits: libsndfile writes the time of day into the header of float files
            soundfile.write(folder / "audio" / f"{uid}.wav", audio, RATE_HZ, subtype="PCM_16")
            rows.append(
                {
                    "track": uid,
                    "path": f"audio/{uid}.wav",
                    "source": "synthetic",
                    "split": ("train", "train", "train", "train", "train", "valid", "test", "test")[piece % 8],
                    "group": f"piece{piece:03d}",
                    "duration_s": recipe.duration_s,
                    "labels": labels,
                }
            )
    write_rows(folder, rows)
    return folder


def read_rows(folder: Path) -> list[dict]:
    """Returns the lines of tracks.jsonl."""
    return [json.loads(line) for line in (folder / "tracks.jsonl").read_text().splitlines()]


def write_rows(folder: Path, rows: list[dict]) -> None:
    """Writes tracks.jsonl."""
    (folder / "tracks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _labels(piece: int, rng: np.random.Generator, duration_s: float) -> dict:
    bpm = float(rng.uniform(80, 150))
    beats = np.arange(rng.uniform(0, 60 / bpm), duration_s, 60 / bpm)
    return {
        "key": KEYS[int(rng.integers(24))],
        "beats": beats.tolist(),
        "downbeats": beats[::4].tolist(),
        "instruments": ["piano", "strings"] if (piece + piece // 8) % 2 else ["organ"],
        "tempo_bpm": bpm,
        "note_density_hz": float(rng.uniform(1, 8)),
        "collection": ("bach", "haydn")[(piece // 2 + piece // 8) % 2],
    }


def _sound(labels: dict, rng: np.random.Generator, duration_s: float) -> np.ndarray:
    time_s = np.arange(int(duration_s * RATE_HZ)) / RATE_HZ
    root, third = KEYS.index(labels["key"]) % 12, 4 if "major" in labels["key"] else 3
    audio = sum(0.1 * np.sin(2 * np.pi * 261.626 * 2 ** ((root + i) / 12) * time_s) for i in (0, third, 7))
    audio = audio + 0.003 * rng.standard_normal(len(time_s))
    for beat in labels["beats"]:
        start = int(beat * RATE_HZ)
        click = 0.5 * rng.standard_normal(480) * np.exp(-np.arange(480) / 100)
        audio[start : start + 480] += click[: max(0, min(480, len(audio) - start))]
    return np.clip(audio, -1, 1).astype(np.float32)
