"""A small MARBLE checkout: manifests of all twelve tasks, with real wav, flac and mp3 files that match the labels."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 8_000
SPLITS = ("train", "val", "test")
ROOTS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")


def chord_sound(label: str, samples: int, rate_hz: int) -> np.ndarray:
    """A triad such as "C:maj" or "A minor"; silence for N."""
    if label == "N":
        return np.zeros(samples)
    root, _, mode = label.replace(" ", ":").partition(":")
    pitches = np.array([0, 3 if mode.startswith("min") else 4, 7]) + ROOTS.index(root)
    time_s = np.arange(samples) / rate_hz
    return sum(0.1 * np.sin(2 * np.pi * 261.626 * 2 ** (p / 12) * time_s) for p in pitches)


def noise(samples: int, seed: int, level: float = 0.003) -> np.ndarray:
    return level * np.random.default_rng(seed).standard_normal(samples)


class Checkout:
    """A folder like MARBLE's checkout.

    Attributes:
        root: what --data names.
    """

    def __init__(self, root: Path):
        self.root = root

    def audio(self, written: str, audio_CS: np.ndarray, rate_hz: int) -> dict:
        """Writes an audio file and returns its fields of a manifest."""
        path = self.root / written
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.atleast_2d(audio_CS).T, rate_hz)
        info = soundfile.info(path)
        return {
            "audio_path": written,
            "duration": info.frames / rate_hz,
            "sample_rate": rate_hz,
            "num_samples": info.frames,
            "bit_depth": 16,
            "channels": info.channels,
        }

    def manifest(self, folder: str, stem: str, split: str, rows: Sequence[dict]) -> Path:
        """Writes the manifest of a split."""
        path = self.root / "data" / folder / f"{stem}.{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def split_up(self, folder: str, stem: str, rows: Sequence[dict]) -> None:
        """Writes all three manifests: of nine rows five train, two validate and two test."""
        of = {split: [r for i, r in enumerate(rows) if _split(i) == split] for split in SPLITS}
        for split in SPLITS:
            self.manifest(folder, stem, split, of[split])


def _split(number: int) -> str:
    return ("train", "train", "val", "test", "train", "train", "val", "test", "train")[number % 9]


def make_checkout(root: Path) -> Checkout:
    """Writes all twelve tasks, nine tracks each."""
    checkout = Checkout(root)
    _emo(checkout)
    _keys(checkout)
    _gtzan(checkout)
    _hooktheory(checkout)
    _tags(checkout)
    _chords(checkout)
    return checkout


def _emo(checkout: Checkout) -> None:
    rows = []
    for i in range(9):
        arousal, valence = float(np.sin(i)), float(np.cos(2 * i))
        samples = int(44.9 * RATE_HZ)
        time_s = np.arange(samples) / RATE_HZ
        sound = 0.1 * np.sin(2 * np.pi * 300 * 2**arousal * time_s) + noise(samples, i, 0.01 * 2**valence)
        facts = checkout.audio(f"data/EMO/emomusic/wav/{i:04d}.wav", sound, RATE_HZ)
        rows.append(facts | {"label": [arousal, valence]})
    checkout.split_up("EMO", "EMO", rows)


def _keys(checkout: Checkout) -> None:
    """Two clips of 30 s for each song, which are one item."""
    rows = []
    for song in range(6):
        label = f"{ROOTS[song]} {'major' if song % 2 else 'minor'}"
        for clip in range(2):
            sound = chord_sound(label, 30 * RATE_HZ, RATE_HZ) + noise(30 * RATE_HZ, 10 * song + clip)
            facts = checkout.audio(f"data/GS/giantsteps_clips/wav/{song}-{clip}.wav", sound, RATE_HZ)
            rows.append(facts | {"ori_uid": str(song), "label": label})
    for number, split in enumerate(SPLITS):
        checkout.manifest("GS", "GS", split, [r for r in rows if int(r["ori_uid"]) % 3 == number])


def _gtzan(checkout: Checkout) -> None:
    genres, beats = [], []
    for i in range(9):
        genre = ("blues", "rock")[(i // 4) % 2]
        bpm = 90.0 + 5 * i
        times = np.arange(0.2, 29.9, 60 / bpm)
        samples = int(30.0 * RATE_HZ)
        sound = noise(samples, i) + (0.1 * np.sin(np.arange(samples)) if genre == "rock" else 0)
        for t in times:
            start = int(t * RATE_HZ)
            sound[start : start + 160] += noise(160, i, 0.5)[: samples - start]
        facts = checkout.audio(f"data/GTZAN/genres/{genre}/{genre}.{i:05d}.wav", sound, RATE_HZ)
        genres.append(facts | {"label": genre})
        label = {"beat": times.tolist(), "downbeat": times[::4].tolist(), "tempo": bpm, "meter": "4/4"}
        beats.append(facts | {"label": label})
    checkout.split_up("GTZAN", "GTZANGenre", genres)
    checkout.split_up("GTZAN", "GTZANBeatTracking", beats)


def _hooktheory(checkout: Checkout) -> None:
    """Stereo mp3 of 16 s; the channels differ in noise only."""
    keys, sections = [], []
    names = (["verse"], ["chorus"], ["pre-chorus", "chorus"], ["solo"])
    for i in range(9):
        label = ("C major", "A minor", "G major")[(i // 4) % 3]
        sound = chord_sound(label, 16 * 16_000, 16_000)
        stereo = np.stack([sound + noise(len(sound), 2 * i + c) for c in range(2)])
        facts = checkout.audio(f"data/HookTheory/hooktheory_clips/h{i}.mp3", stereo, 16_000) | {"ori_uid": f"yt{i}"}
        keys.append(facts | {"label": label})
        extra = {"ori_audio_path": f"data/HookTheory/audio/yt{i}.mp3", "segment_start": 1.0, "segment_end": 17.0}
        sections.append(facts | extra | {"label": names[(i // 4) % 3]})
    checkout.split_up("HookTheory", "HookTheoryKey", keys)
    checkout.split_up("HookTheory", "HookTheoryStructure", sections)


def _tags(checkout: Checkout) -> None:
    """MTT has 29.3 s of mp3; MTG-Jamendo 61 s of flac, which all four tasks read."""
    mtt, mtg = [], []
    for i in range(9):
        has = (i // 4) % 2 == 0
        sound = noise(int(29.3 * 16_000), i) + (chord_sound("C:maj", int(29.3 * 16_000), 16_000) if has else 0)
        facts = checkout.audio(f"data/MTT/mp3/0/{i}.mp3", sound, 16_000)
        mtt.append(facts | {"label": ["guitar", "slow"] if has else ([] if i == 6 else ["rock"])})
        sound = noise(61 * RATE_HZ, i) + (chord_sound("C:maj", 61 * RATE_HZ, RATE_HZ) if has else 0)
        mtg.append((checkout.audio(f"data/MTG/audio/{i:02d}/{i}.low.flac", sound, RATE_HZ), has))
    checkout.split_up("MTT", "MTT", mtt)
    for task, kind in (("Genre", "genre"), ("Instrument", "instrument"), ("Mood", "mood/theme"), ("Top50", "genre")):
        rows = [facts | {"label": [f"{kind}---a", f"{kind}---b"] if has else [f"{kind}---c"]} for facts, has in mtg]
        checkout.split_up("MTG", f"MTG{task}", rows)


def _chords(checkout: Checkout) -> None:
    """Four chords of 5 s and 2 s of silence, at 24 kHz."""
    rows = []
    for i in range(9):
        labels = [("C:maj", "F:maj", "A:min", "G:maj7")[(k + i) % 4] for k in range(4)] + ["N"]
        spans = [(5.0 * k, 5.0 * k + (2.0 if k == 4 else 5.0)) for k in range(5)]
        sound = np.concatenate(
            [chord_sound(name, round((b - a) * 24_000), 24_000) for name, (a, b) in zip(labels, spans, strict=True)]
        )
        facts = checkout.audio(f"data/Chords1217/audio/{i}.flac", sound + noise(len(sound), i), 24_000)
        segments = [
            {"start_time": a, "end_time": b, "chord_str": name} for name, (a, b) in zip(labels, spans, strict=True)
        ]
        rows.append(facts | {"label": segments})
    checkout.split_up("Chords1217", "Chords1217", rows)
