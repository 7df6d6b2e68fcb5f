"""One side of the build benchmark in its own process on one core: `data build` or a librosa loop.

  python -m benchmarks.build_side ours|librosa AUDIO_FOLDER WARM_UP_FOLDER OUT

A short corpus is built first and not counted, so imports, compilation and the start of workers do not count. Shapes: S
samples, T frames, F mel bands.
"""

import argparse
import io
import json
import os
import resource
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import webdataset

from data.building import command as build_command
from pupujepa.audio.log_mel import LOG_FLOOR, FrontendConfig

CONFIG = FrontendConfig()
PART_FRAMES, SHARD_BYTES = 3072, 256 << 20
LO, HI = LOG_FLOOR, 2.71


def build_ours(folder: Path, out: Path) -> None:
    """Builds shards with the command that users run, with one worker."""
    parser = argparse.ArgumentParser()
    build_command.add_arguments(parser)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        failed = build_command.run(parser.parse_args([str(folder), str(out), "--workers", "1"]))
    if failed:
        raise RuntimeError("data build failed")


def build_librosa(folder: Path, out: Path) -> None:
    """Builds shards by librosa and webdataset's writer: no checks, no digests, no statistics, no resuming."""
    out.mkdir(parents=True)
    with webdataset.ShardWriter(str(out / "train-%06d.tar"), maxsize=SHARD_BYTES, verbose=0) as writer:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            for number, stored_TF in enumerate(librosa_parts(path)):
                array = io.BytesIO()
                np.save(array, stored_TF)
                writer.write({"__key__": f"{path.stem}-{number:04d}", "mel.npy": array.getvalue(), "json": {}})


def librosa_parts(path: Path) -> Iterator[np.ndarray]:
    """Yields uint8 codes [T, F] of up to 3,072 frames; librosa resamples with soxr_hq, its default."""
    audio_S, _ = librosa.load(path, sr=CONFIG.sample_rate_hz)
    mel_FT = librosa.feature.melspectrogram(
        # centred on the same samples as our frames
        y=np.pad(audio_S, CONFIG.padding_samples, mode="reflect"),
        center=False,
        sr=CONFIG.sample_rate_hz,
        n_fft=CONFIG.n_fft,
        hop_length=CONFIG.hop_samples,
        win_length=CONFIG.window_samples,
        n_mels=CONFIG.mel_bands,
        fmin=CONFIG.fmin_hz,
        fmax=CONFIG.fmax_hz,
        power=1.0,
    )
    log_mel_TF = np.log(np.maximum(mel_FT, CONFIG.floor)).T
    codes_TF = np.rint((log_mel_TF - LO) * (255 / (HI - LO))).clip(0, 255).astype(np.uint8)
    yield from (codes_TF[start : start + PART_FRAMES] for start in range(0, len(codes_TF), PART_FRAMES))


def stored(out: Path) -> dict[str, np.ndarray]:
    """Returns the codes [T, F] of every track in a folder of shards, its parts joined."""
    parts: dict[str, np.ndarray] = {}
    for shard in sorted(out.rglob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                if kind == "mel.npy":
                    parts[key] = np.load(io.BytesIO(tar.extractfile(member).read()))  # type: ignore[union-attr]
    tracks: dict[str, list[np.ndarray]] = {}
    for key in sorted(parts):
        tracks.setdefault(key.rsplit("-", 1)[0], []).append(parts[key])
    return {track: np.concatenate(pieces) for track, pieces in tracks.items()}


SIDES = {"ours": build_ours, "librosa": build_librosa}


def run(side: str, folder: Path, warm_up: Path, out: Path) -> dict[str, Any]:
    """Pins this process to one core, builds, and returns the seconds."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    SIDES[side](warm_up, out / "warm-up")
    before, started = _cpu_s(), time.perf_counter()
    SIDES[side](folder, out / "built")
    return {"seconds": time.perf_counter() - started, "cpu_s": _cpu_s() - before}


def _cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], *map(Path, sys.argv[2:5]))))
