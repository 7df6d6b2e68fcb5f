"""uint8 codes against float16 values: bytes, the error of a round trip, and whether probes move.

  python -m data scores corpora/scores --pieces 800 --takes 2 --seconds 20.48      the demo's corpus, if there is none
  python -m benchmarks codes --corpus corpora/scores --out runs/codes              about 15 minutes on two idle cores
  python -m benchmarks codes --corpus corpora/scores --out runs/codes --no-probes  bytes and errors alone, two minutes
  python -m benchmarks codes --plan                                                the plan, and its duration

Builds the corpus in both forms, measures the error of each against the float32 front end, trains the demo's recipe on
both with the same seeds (sweeps/ablations/codes.yaml) and probes all of them on the five offline tasks. After an
interruption the same command resumes.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from benchmarks import arguments_of
from benchmarks.alternate import machine
from data.building.features import FeatureConfig
from data.shards.format import decode_mel, encode_mel
from data.shards.manifest import Manifest, read_manifest
from distributed.run.directory import write_json
from pupujepa.audio.log_mel import log_mel
from pupujepa.audio.read import resample
from pupujepa.audio.source import read_audio
from pupujepa.errors import UserError
from pupujepa.json_lines import read_rows
from pupujepa.progress import Progress
from sweeps.plan.plan import read_plan
from sweeps.plan.sweep_file import BASE
from sweeps.results.outcomes import points, trial_rows

ROOT = Path(__file__).resolve().parents[1]
SWEEP = ROOT / "sweeps" / "ablations" / "codes.yaml"
# the same number of samples per shard, so both sets are cut alike
SHARD_MIB = {"float16": 16, "uint8": 8}
BUILD_S, CROPS_PER_S, PROBE_S, TRIALS_AT_ONCE = 50, 50, 70, 2
PREDICTION = (
    "uint8: half of the bytes within 1 %; largest error half a step, .028 nats, rms .016; float16 at most .004. In "
    "units of the corpus' deviation below .01 and .002. No value is clipped. No task moves clear of its interval, and "
    "the mean difference is below the one between two seeds."
)


@dataclass(frozen=True)
class RoundTrip:
    """Errors of stored values against the front end's float32, in units of the corpus' deviation.

    rms, largest: over all values. rms_of_band, largest_of_band: by mel band [F].
    above, below: shares of values outside the range of the codes.
    """

    dtype: str
    values: int
    rms: float
    largest: float
    rms_of_band: list[float]
    largest_of_band: list[float]
    above: float
    below: float


def main() -> None:
    """Completes all steps and prints all tables."""
    args = parse(arguments_of("codes"))
    print(f"{machine()}\n\nprediction: {PREDICTION}\n\n{plan_text(args)}\n", flush=True)
    if args.plan:
        return
    if not (args.corpus / "tracks.jsonl").is_file():
        raise UserError(
            f"{args.corpus} holds no tracks.jsonl, so there is no corpus; render one with "
            f"`python -m data scores {args.corpus}`, or name another with --corpus"
        )
    manifests = {dtype: build(args.corpus, args.out / dtype, dtype) for dtype in SHARD_MIB}
    print(bytes_table(manifests) + "\n", flush=True)
    trips = round_trips(args.corpus, args.out / "round_trip.json", std=manifests["float16"].std)
    print(error_table(trips) + "\n", flush=True)
    if not args.no_probes:
        print(probe_table(run_sweep(args)))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads what follows the benchmark's name."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks codes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=ROOT / "runs" / "demo" / "corpus", metavar="DIR")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "codes", metavar="DIR")
    parser.add_argument("--no-probes", action="store_true", help="bytes and errors alone")
    parser.add_argument("--plan", action="store_true", help="print the plan and its duration, and stop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training (default: 0 1 2)")
    parser.add_argument("--crops", type=int, default=10_000, help="of each training (default: %(default)s)")
    parser.add_argument("--tracks", type=int, help="number of tracks to probe on (default: all)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every training")
    args = parser.parse_args(arguments)
    args.corpus, args.out = args.corpus.resolve(), args.out.resolve()
    return args


def plan_text(args: argparse.Namespace) -> str:
    """Returns the plan and its approximate duration on two idle cores."""
    trials = 2 * len(args.seeds)
    probes_s = 0 if args.no_probes else -(-trials // TRIALS_AT_ONCE) * (args.crops / CROPS_PER_S + PROBE_S)
    lines = [
        f"plan, in {args.out}:",
        f"- build {' and '.join(SHARD_MIB)} from {args.corpus}, and compare both with float32: {2 * BUILD_S + 30} s",
    ]
    if not args.no_probes:
        lines.append(
            f"- {trials} trainings ({len(args.seeds)} seeds x 2) of {args.crops:,} crops and their probes, "
            f"{TRIALS_AT_ONCE} at once: {probes_s:.0f} s"
        )
    return "\n".join([*lines, f"- together about {(2 * BUILD_S + 30 + probes_s) / 60:.0f} minutes, less what is done"])


def build(corpus: Path, out: Path, dtype: str) -> Manifest:
    """Stores the corpus as `dtype` unless it exists; returns the manifest of the training split."""
    size = ("--shard-mib", str(SHARD_MIB[dtype]))
    _run("data", "build", str(corpus / "tracks.jsonl"), str(out), "--dtype", dtype, *size, "--workers", "2")
    return read_manifest(str(out / "train"))


def round_trips(corpus: Path, record: Path, *, std: float) -> list[RoundTrip]:
    """Returns the errors of both forms over the training split; `record` caches them."""
    rows = read_rows(corpus / "tracks.jsonl")
    paths = [corpus / row["path"] for row in rows if row["split"] == "train"]
    identity = {"std": std, "tracks": len(paths)}
    if record.is_file() and (kept := json.loads(record.read_text()))["identity"] == identity:
        return [RoundTrip(**trip) for trip in kept["trips"]]
    with Progress(len(paths), title="round trips", unit="tracks") as progress:
        trips = measure(_spectrograms(paths, progress), std=std)
    write_json(record, {"identity": identity, "trips": [asdict(trip) for trip in trips]})
    return trips


def measure(mels_TF: Iterable[NDArray[np.float32]], *, std: float) -> list[RoundTrip]:
    """Returns the errors of float16 and uint8 over log-mel spectrograms [T, F], in units of `std`."""
    config = FeatureConfig()
    bands = config.frontend.mel_bands
    squares = {dtype: np.zeros(bands) for dtype in SHARD_MIB}
    largest = {dtype: np.zeros(bands) for dtype in SHARD_MIB}
    frames = above = below = 0
    for mel_TF in mels_TF:
        frames += len(mel_TF)
        above += int((mel_TF > np.float32(config.hi)).sum())
        below += int((mel_TF < np.float32(config.lo)).sum())
        for dtype in SHARD_MIB:
            stored_TF = encode_mel(mel_TF, dtype, lo=config.lo, hi=config.hi)
            error_TF = np.abs(decode_mel(stored_TF, lo=config.lo, hi=config.hi) - mel_TF).astype(np.float64)
            squares[dtype] += np.square(error_TF).sum(axis=0)
            largest[dtype] = np.maximum(largest[dtype], error_TF.max(axis=0))
    values = frames * bands
    return [
        RoundTrip(
            dtype=dtype,
            values=values,
            rms=float(np.sqrt(squares[dtype].sum() / values) / std),
            largest=float(largest[dtype].max() / std),
            rms_of_band=(np.sqrt(squares[dtype] / frames) / std).tolist(),
            largest_of_band=(largest[dtype] / std).tolist(),
            # float16 has no limited range
            above=above / values if dtype == "uint8" else 0.0,
            below=below / values if dtype == "uint8" else 0.0,
        )
        for dtype in SHARD_MIB
    ]


def bytes_table(manifests: dict[str, Manifest]) -> str:
    """Returns bytes per hour of audio."""
    lines = ["| | training split, MB | MB an hour of audio | samples | shards |", "|---|---|---|---|---|"]
    for dtype, manifest in manifests.items():
        size = sum(shard.bytes for shard in manifest.shards) / 1e6
        per_hour = size / manifest.audio_hours
        lines.append(f"| {dtype} | {size:.1f} | {per_hour:.2f} | {manifest.samples:,} | {len(manifest.shards)} |")
    return "\n".join(lines)


def error_table(trips: Sequence[RoundTrip]) -> str:
    """Returns the errors in units of the corpus' deviation."""
    lines = [
        "| error / deviation | rms | largest | band with the largest rms | largest of a band, from to | values cut |",
        "|---|---|---|---|---|---|",
    ]
    for trip in trips:
        band = int(np.argmax(trip.rms_of_band))
        lines.append(
            f"| {trip.dtype} | {trip.rms:.5f} | {trip.largest:.5f} | {trip.rms_of_band[band]:.5f} (band {band}) | "
            f"{min(trip.largest_of_band):.5f} to {max(trip.largest_of_band):.5f} | {trip.above + trip.below:.2%} |"
        )
    return "\n".join(lines)


def run_sweep(args: argparse.Namespace) -> Path:
    """Completes training and probes on both sets; returns the sweep's directory."""
    sweep = yaml.safe_load(SWEEP.read_text())
    sweep["axes"]["codes"]["values"]["uint8"]["stream.url"] = str(args.out / "uint8" / "train")
    sweep["seeds"], sweep["budget"] = args.seeds, {"samples": args.crops}
    if args.tracks:
        sweep["probe_tracks"] = args.tracks
    file, out = args.out / SWEEP.name, args.out / "sweep"
    file.write_text(yaml.safe_dump(sweep, sort_keys=False))
    inputs = ("--shards", str(args.out / "float16" / "train"), "--corpus", str(args.corpus), "--out", str(out))
    overrides = ("--set", *args.set) if args.set else ()
    _run("sweeps", "run", str(file), *inputs, "--resume", *overrides)
    return out


def probe_table(sweep: Path) -> str:
    """Returns the scores of both, their difference paired by seed, and the spread over seeds."""
    found = points(trial_rows(read_plan(sweep), sweep))
    base, codes = (next(p for p in found if (p.axis == BASE) == is_base) for is_base in (True, False))
    lines = ["| task | float16 | uint8 | uint8 - float16, 95 % | over | seeds of float16 differ by |"]
    lines += ["|---|---|---|---|---|---|"]
    for task, delta in codes.deltas.items():
        of_seeds = [row["results"][task]["value"] for row in base.rows]
        lines.append(
            f"| {task} | {base.values[task]:.3f} | {codes.values[task]:.3f} | "
            f"{delta.value:+.3f} [{delta.lo:+.3f}, {delta.hi:+.3f}] | {delta.over} | "
            f"{max(of_seeds) - min(of_seeds):.3f} |"
        )
    return "\n".join(lines)


def _spectrograms(paths: Sequence[Path], progress: Progress) -> Iterable[NDArray[np.float32]]:
    frontend = FeatureConfig().frontend
    for path in paths:
        audio_S, rate_hz = read_audio(path)
        audio_1S = torch.from_numpy(resample(audio_S, rate_hz, frontend.sample_rate_hz))[None]
        with torch.inference_mode():
            yield log_mel(audio_1S, frontend)[0].numpy()
        progress.advance()


def _run(room: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", room, *arguments], check=True, cwd=ROOT)
