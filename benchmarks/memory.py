"""Memory of embedding a long clip on the CPU: peak of a fresh process above the weights, by length.

  python -m benchmarks memory                                    Large, one and ten minutes, frames and mean: slow
  python -m benchmarks memory --size tiny --seconds 60 120       quicker: does memory grow with length?

Weights are random, in float32, whole in memory (student, teacher, predictor), and only their bytes are
subtracted from the peak: Python and torch count against us. The clip is a stereo file at 44.1 kHz.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile

from benchmarks import arguments_of
from benchmarks.alternate import machine
from pupujepa.cost.cost import model_size, size_names
from pupujepa.embedding.encoder import Encoder
from pupujepa.model.model import ModelConfig, PupuJEPA

GIB = 2**30
AIM_GIB = 4.0
PYTHON_AND_TORCH = round(0.55 * GIB)
# Tensors of a token's width that a block's MLP holds at the same time: the residual, its norm, gate and value (8), the
# activated gate (4), the product (4).
WIDTHS_IN_MLP = 18
FILE_RATE_HZ = 44_100
PREDICTION = (
    "2.3 GiB for ten minutes of frames with Large (1.1 in the MLP of a batch of 8 windows, 0.5 the result, 0.55 Python "
    "and torch, 0.1 states), 1.8 GiB for their mean, whatever the length."
)


@dataclass(frozen=True)
class Measurement:
    """Bytes of the weights, peak of the process, and the seconds that encoding took."""

    weights: int
    peak: int
    encoding_s: float

    @property
    def above_weights(self) -> int:
        """Peak less weights."""
        return self.peak - self.weights


def main() -> None:
    """Prints a row for every length and readout, each measured in a fresh process."""
    args = parse(arguments_of("memory"))
    print(f"{machine()}\n\nprediction: {PREDICTION} Aim: below {AIM_GIB:g} GiB.\n")
    print("| size | clip, s | readout | weights, GiB | arithmetic, GiB above | measured, GiB above | encoding, s |")
    print("|---|---|---|---|---|---|---|")
    for readout in args.readout:
        for seconds in args.seconds:
            found = measure(args.size, seconds, readout=readout, batch_size=args.batch_size)
            expected = arithmetic(model_size(args.size), seconds, readout=readout, batch_size=args.batch_size)
            sizes = " | ".join(f"{size / GIB:.2f}" for size in (found.weights, expected, found.above_weights))
            print(f"| {args.size} | {seconds:g} | {readout} | {sizes} | {found.encoding_s:.0f} |", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads what follows the benchmark's name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory")
    parser.add_argument("--size", choices=size_names(), default="large")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60, 600])
    parser.add_argument("--readout", nargs="+", default=["frames", "mean"])
    parser.add_argument("--batch-size", type=int, default=8)
    return parser.parse_args(arguments)


def measure(size: str, seconds: float, *, readout: str, batch_size: int) -> Measurement:
    """Encodes a clip in a fresh process and returns its memory and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        _write_noise(path, seconds)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(_encode, size, path, readout, batch_size).result()


def arithmetic(config: ModelConfig, seconds: float, *, readout: str, batch_size: int) -> int:
    """Returns the bytes above the weights that the largest tensors add up to."""
    steps = round(seconds * 25)
    windows = max(1, min(batch_size, -(-2 * steps // config.grid_steps) - 1))
    token_states = windows * config.num_patches * config.width * 4
    result = steps * config.grid_bands * config.width * 4 if readout == "frames" else 0
    return PYTHON_AND_TORCH + (WIDTHS_IN_MLP + 1) * token_states + result


def _encode(size: str, path: Path, readout: str, batch_size: int) -> Measurement:
    model = PupuJEPA(model_size(size))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    started = time.perf_counter()
    embedding = Encoder(model, batch_size=batch_size).encode(path, readout=readout)
    encoding_s = time.perf_counter() - started
    assert np.isfinite(embedding.values[-1:]).all()
    return Measurement(weights, _peak_bytes(), encoding_s)


def _peak_bytes() -> int:
    """Returns this process's peak of resident memory; ru_maxrss would include the parent before exec."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, "the kernel reports no VmHWM; this benchmark needs Linux"
    return int(match[1]) * 1024


def _write_noise(path: Path, seconds: float) -> None:
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", samplerate=FILE_RATE_HZ, channels=2, subtype="PCM_16") as file:
        for start in range(0, round(seconds * FILE_RATE_HZ), FILE_RATE_HZ):
            samples = min(FILE_RATE_HZ, round(seconds * FILE_RATE_HZ) - start)
            file.write(rng.uniform(-0.3, 0.3, (samples, 2)))
