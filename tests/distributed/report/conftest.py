"""A made-up run, for looking at the page and for its tests. Its numbers are inventions of this file, not results."""

import json
import math
import shutil
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from data.shards.format import encode_mel, index_name, write_index, write_shard
from data.shards.manifest import Manifest, ShardEntry, write_manifest
from distributed.report.page import build_report
from docs.browser import Browser
from pupujepa.audio.log_mel import LOG_FLOOR, FrontendConfig, frontend_digest, log_mel
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.weights.weights import save_release

RATE_HZ = 24_000
TINY = ModelConfig(
    crop_frames=128, width=16, depth=2, heads=2, predictor_width=16, predictor_depth=2, predictor_heads=2
)
ENCODERS = ("demo", "random_init", "log_mel", "chroma")
# task: metric, gain over random init, its half-width, value of random init
TASKS = {
    "key": ("key_weighted", -0.0213, 0.0404, 0.5562),
    "beats": ("beat_f1", 0.0611, 0.0302, 0.4127),
    "instruments": ("roc_auc", 0.0966, 0.0142, 0.7484),
    "tempo": ("r2", 0.1743, 0.0688, 0.0471),
    "collection": ("accuracy", 0.1004, 0.0571, 0.6033),
}


@pytest.fixture(scope="session")
def made_run(tmp_path_factory):
    """A run directory with all inputs, beside its shards; read-only by agreement."""
    home = tmp_path_factory.mktemp("made")
    write_run(home / "demo", write_shards(home / "shards", seconds=4.0), steps=1800)
    return home / "demo"


@pytest.fixture
def own_run(made_run, tmp_path):
    """A copy of the made run that a test may damage."""
    return Path(shutil.copytree(made_run, tmp_path / "demo"))


@pytest.fixture
def bare_run(own_run):
    """The copy without weights: its page is made in a moment."""
    (own_run / "export" / "model.safetensors").unlink()
    return own_run


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium; without one the tests fail and say how to install it, since nobody would have looked."""
    with Browser() as running:
        yield running


@pytest.fixture(scope="session")
def made_page(made_run, tmp_path_factory):
    """The page of the made run."""
    return Path(build_report(made_run, out=tmp_path_factory.mktemp("page") / "report.html"))


def write_run(home: Path, shards: str, *, steps: int) -> None:
    """Writes every file that a report reads."""
    home.mkdir(parents=True)
    config = {"model": asdict(TINY), "masks": {"ratio": 0.8}, "stream": {"url": shards, "global_batch": 16}}
    (home / "config.yaml").write_text("\n".join(yaml_lines(config)) + "\n")
    (home / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in metric_rows(steps)))
    (home / "facts.json").write_text(json.dumps(facts(steps, shards)))
    (home / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in result_rows()))
    phases = {"render": 62.4, "shard": 21.7, "train": 331.0, "evaluate": 74.2, "sweep": 48.1, "report": 6.3}
    (home / "phases.json").write_text(json.dumps(phases))
    save_release(PupuJEPA(TINY, seed=1), TINY, home / "export")


def yaml_lines(config: dict) -> list[str]:
    """Nested mappings as YAML lines; the values are JSON, which is YAML too."""
    lines = []
    for section, values in config.items():
        lines += [f"{section}:", *(f"  {key}: {json.dumps(value)}" for key, value in values.items())]
    return lines


def facts(steps: int, shards: str) -> dict:
    """Facts as the trainer writes them."""
    return {
        "ranks": 2, "zero_stage": 2, "steps": steps, "global_batch": 16, "crops_per_s": 96.4,
        "data_wait_fraction": 0.012, "loss_first": 0.471, "loss_last": 0.212, "explained_variance": 0.341,
        "effective_rank": 63.2, "audio_hours": 7.12, "tracks": 1284, "shards": 23, "parameters": 1_284_096,
        "precision": "bf16",
        "device": "cpu", "resumed": [{"step": 600, "time": "2026-01-02T03:04:05Z"}], "manifest_digest": "9f" * 32,
        "store": shards, "versions": {"torch": "2.12.0"},
        "sessions": [{"step": 0, "command": "train --preset demo --run-dir runs/demo"}],
    }  # fmt: skip


def metric_rows(steps: int, *, every: int = 10) -> list[dict]:
    """Curves of a run that learns: loss, schedule, speed on each logged step, diagnostics on each tenth of those."""
    rng = np.random.default_rng(0)
    rows = []
    for step in range(every, steps + 1, every):
        done = step / steps
        loss = 0.2 + 0.27 * math.exp(-6 * done) + 0.006 * rng.standard_normal()
        row = {
            "step": step, "epoch": 0, "loss": loss, "loss_random": loss - 0.03, "loss_block": loss + 0.02,
            "loss_time_frequency": loss + 0.05 + 0.01 * rng.standard_normal(),
            "lr": 2e-3 * min(done / 0.05, 0.5 * (1 + math.cos(math.pi * done))),
            "ema_momentum": 0.98 + 0.0195 * done, "grad_norm": 0.6 + 0.3 * math.exp(-4 * done) + 0.05 * rng.random(),
            "crops_per_s": 96 + 3 * rng.standard_normal(), "step_s": 0.166, "data_wait_s": 0.002 + 0.002 * rng.random(),
        }  # fmt: skip
        if step % (every * 5) == 0:
            row |= diagnostics(done, rng)
        if step % (every * 30) == 0:
            row |= in_loop_probes(done)
        rows.append(row)
    return rows


def in_loop_probes(done: float) -> dict:
    """Probes while it trains, at a share of the run."""
    start = {"key/key_weighted": 0.5, "beats/beat_f1": 0.4, "instruments/roc_auc": 0.7, "tempo/r2": 0.1}
    values = {name: value + 0.2 * done for name, value in (start | {"collection/accuracy": 0.6}).items()}
    return {f"probe/{name}": value for name, value in values.items()} | {"probe/mean": sum(values.values()) / 5}


def diagnostics(done: float, rng: np.random.Generator) -> dict:
    """Diagnostics at a share of the run."""
    wobble = 0.01 * rng.standard_normal()
    values = {
        "explained_variance": 0.36 * (1 - math.exp(-4 * done)) + wobble,
        "explained_variance_position": 0.27 * (1 - math.exp(-3 * done)) - 0.04 + wobble,
        "effective_rank_teacher": 48 + 16 * done + 40 * wobble,
        "effective_rank_student": 47 + 19 * done + 40 * wobble,
        "std_teacher": 0.82 - 0.1 * done + wobble, "std_student": 0.8 - 0.12 * done + wobble,
        "cosine_teacher": 0.31 + 0.1 * done + wobble, "cosine_student": 0.3 + 0.13 * done + wobble,
        "teacher_student_distance": 0.22 * math.exp(-2 * done) + 0.02, "teacher_moved": 0.9 * done**0.6,
    }  # fmt: skip
    values |= {
        "explained_variance_random": values["explained_variance"] + 0.04,
        "explained_variance_block": values["explained_variance"] - 0.03,
        "explained_variance_time_frequency": values["explained_variance"] - 0.07,
        "effective_rank_pooled_teacher": 12 + 6 * done, "lidar": 9 + 8 * done,
    }  # fmt: skip
    values |= {f"explained_variance_band_{i}": values["explained_variance"] - 0.02 * i for i in range(8)}
    values |= {f"effective_rank_band_{i}": 36 - 2.4 * i + (8 + i) * done + 20 * wobble for i in range(8)}
    return {f"diag/{key}": value for key, value in values.items()}


def result_rows() -> list[dict]:
    """One row per task and encoder; chroma for the key only."""
    rows = []
    for task, (metric, gain, half, untrained) in TASKS.items():
        values = {"demo": untrained + gain, "random_init": untrained, "log_mel": untrained - 0.0113, "chroma": 0.6881}
        for encoder in ENCODERS if task == "key" else ENCODERS[:3]:
            value = values[encoder]
            row = {
                "task": task, "encoder": encoder, "protocol": "clean", "metric": metric, "value": value,
                "interval": [value - half, value + 0.9 * half], "layer": 2,
                "learning_rate": 0.001, "seeds": [0, 1], "test_items": 212,
                "selection": {"split": "valid", "metric": metric, "value": value},
                "digests": {"checkpoint": "ab" * 32, "corpus": "cd" * 32}, "difference_to": {},
                "extra": {
                    "test_units": 106, "layers": [0, 1, 2, 3],
                    "layer_profile": [value - 0.02 * abs(i - 2) for i in range(4)],
                },
            }  # fmt: skip
            if encoder == "demo":
                row["difference_to"] = {
                    other: difference(value - values[other], half)
                    for other in (ENCODERS[1:] if task == "key" else ENCODERS[1:3])
                }
            rows.append(row)
    return rows


def difference(value: float, half: float) -> dict:
    """A paired difference as the evaluator writes it."""
    return {"value": value, "interval": [value - half, value + half]}


def write_shards(root: Path, *, seconds: float) -> str:
    """Writes a train and a test split of short synthetic pieces; returns the URL of the train split."""
    for split, pieces in (("train", 2), ("test", 4)):
        write_split(root / split, split, pieces=pieces, seconds=seconds)
    return str(root / "train")


def write_split(home: Path, split: str, *, pieces: int, seconds: float) -> None:
    """Writes one shard of plucked chords with their labels, and its manifest."""
    home.mkdir(parents=True)
    frontend = FrontendConfig()
    samples = []
    for piece in range(pieces):
        audio, beats = plucked(piece, seconds)
        mel_TF = log_mel(torch.from_numpy(audio)[None], frontend)[0].numpy()
        labels = {
            "key": ("C major", "A minor")[piece % 2], "beats": beats, "downbeats": beats[::4], "tempo_bpm": 120.0,
            "instruments": ["guitar", "organ"][: 1 + piece % 2], "note_density_hz": 4.0, "collection": "plucked",
        }  # fmt: skip
        info = {
            "uid": f"{split}{piece}-0000", "track": f"{split}{piece}", "source": f"folk-{piece % 3}", "start_s": 0.0,
            "duration_s": seconds, "frames": len(mel_TF), "labels": labels,
        }  # fmt: skip
        samples.append({"info": info, "mel": encode_mel(mel_TF, "uint8", lo=LOG_FLOOR, hi=5.0)})
    name = "shard-000000.tar"
    with (home / name).open("wb") as file:
        written = write_shard(file, samples)
    index = write_index(written.index)
    (home / index_name(name)).write_bytes(index)
    frames = sum(written.index.frames)

    entry = ShardEntry(name, pieces, frames, written.bytes, written.sha256, sha256(index).hexdigest())
    manifest = Manifest(
        split=split, frontend=asdict(frontend), frontend_digest=frontend_digest(frontend), dtype="uint8", lo=LOG_FLOOR,
        hi=5.0, mean=-4.0, std=2.0, audio_hours=frames / 360_000, tracks=pieces, shards=(entry,),
    )  # fmt: skip
    write_manifest(str(home), manifest)


def plucked(seed: int, seconds: float) -> tuple[np.ndarray, list[float]]:
    """Returns decaying harmonic notes at 120 beats per minute, two a beat, and the beats in seconds."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    audio = np.zeros_like(time_s)
    for onset_s in np.arange(0, seconds, 0.25):
        pitch_hz = 220 * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
        after_s = np.clip(time_s - onset_s, 0, None)
        for harmonic in range(1, 9):
            tone = np.sin(2 * np.pi * harmonic * pitch_hz * after_s) * np.exp(-after_s * (2 + harmonic)) / harmonic
            audio += 0.2 * tone * (time_s >= onset_s)
    return audio.astype(np.float32), [float(b) for b in np.arange(0, seconds, 0.5)]
