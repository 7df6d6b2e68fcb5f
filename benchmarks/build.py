"""`data build` against a librosa pipeline, one core each: hours of audio per core-hour.

  python -m benchmarks build                                      synthetic songs as wav, flac and mp3; about 4 minutes
  python -m benchmarks build --audio my/songs --rounds 3          a folder of yours
  python -m benchmarks build --profile                            profile of our side, by file format

Both go from files to WebDataset shards of uint8 log-mel. Ours is the whole command: digests, checks, statistics, search
for duplicates, a spool to resume from, fsync. The peer is a short script: librosa.load at 24 kHz (soxr_hq, its
default), librosa's mel spectrogram, logarithm, np.save, webdataset's writer. Stored frames and values are compared too.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from benchmarks import arguments_of
from benchmarks.alternate import HEADER, Comparison, machine
from benchmarks.build_side import stored
from benchmarks.profiled import profile
from data.building.features import FeatureConfig, extract

PREDICTION = (
    "wav 2.0x, flac 1.7x, mp3 1.4x: decoding is libsndfile on both sides; our resampler (torchaudio, windowed sinc) "
    "and our front end are twice as fast as soxr_hq and librosa's, and the digests, statistics and the spool take a "
    "fifth of that back. The aim of 5x will be missed, most of all for mp3, whose decoding alone is half of the peer's "
    "time."
)
AIM = 5.0
RATE_HZ = 44_100
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III"}


def main() -> None:
    """Prints the comparison as Markdown."""
    args = parse(arguments_of("build"))
    print(f"{machine()}; each side on one core\n\nprediction: {PREDICTION} Aim: {AIM:g}x.\n")
    with tempfile.TemporaryDirectory(prefix="build-") as temporary:
        corpora = dict(corpora_of(args, Path(temporary)))
        if args.profile:
            for name, folder in corpora.items():
                print(f"### {name}: features of all files in one process\n\n{profile(partial(features, folder))}\n")
            return
        warm_up = Path(temporary) / "warm-up"
        write_songs({"wav": warm_up}, songs=1, seconds=10.0)
        facts = []
        print(HEADER)
        for name, folder in corpora.items():
            compared, agreement = compare(folder, warm_up, Path(temporary) / "out", rounds=args.rounds)
            print(compared.row(f"{name}, {hours_of(folder) * 60:.1f} minutes"), flush=True)
            facts.append(f"- {name}: {rates(compared, hours_of(folder))}; {agreement}")
        print("\n" + "\n".join(facts))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads what follows the benchmark's name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks build")
    parser.add_argument("--audio", type=Path, help="a folder of audio (default: synthetic songs)")
    parser.add_argument("--songs", type=int, default=16, help="of each format (default: 16)")
    parser.add_argument("--seconds", type=float, default=180.0, help="of a song (default: 180)")
    parser.add_argument("--rounds", type=int, default=3, help="of each side (default: 3)")
    parser.add_argument("--profile", action="store_true", help="profile our side instead of comparing")
    return parser.parse_args(arguments)


def corpora_of(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields (name, folder) of the audio that is built."""
    if args.audio is not None:
        yield args.audio.name, args.audio
        return
    folders = {suffix: folder / suffix for suffix in FORMATS}
    write_songs(folders, songs=args.songs, seconds=args.seconds)
    yield from folders.items()


def write_songs(folders: Mapping[str, Path], *, songs: int, seconds: float) -> None:
    """Writes the same synthetic songs in the formats that are keys, each into its folder."""
    for folder in folders.values():
        folder.mkdir(parents=True)
    for number in range(songs):
        audio_SC = song(number, seconds)
        for suffix, folder in folders.items():
            soundfile.write(folder / f"song{number:03d}.{suffix}", audio_SC, RATE_HZ, subtype=FORMATS[suffix])


def song(number: int, seconds: float) -> np.ndarray:
    """Returns stereo audio [S, 2], a function of `number`: decaying notes with overtones over quiet noise."""
    rng = np.random.default_rng(number)
    audio_SC = 0.003 * rng.standard_normal((round(seconds * RATE_HZ), 2))
    note_samples = RATE_HZ // 2
    time_s = np.arange(note_samples) / RATE_HZ
    for start in range(0, len(audio_SC) - note_samples, note_samples // 2):
        hz = 110 * 2 ** (rng.integers(0, 36) / 12)
        tone = sum(np.sin(2 * np.pi * hz * k * time_s) / k for k in range(1, 7) if hz * k < RATE_HZ / 2)
        audio_SC[start : start + note_samples] += (0.1 * tone * np.exp(-4 * time_s))[:, None] * rng.uniform(0.3, 1, 2)
    return audio_SC.clip(-1, 1)


def compare(folder: Path, warm_up: Path, out: Path, *, rounds: int) -> tuple[Comparison, str]:
    """Builds with both sides in turn, each in a fresh process; returns the times and the agreement."""
    seconds: dict[str, list[float]] = {"ours": [], "librosa": []}
    agreement = ""
    for _ in range(rounds):
        for side, times in seconds.items():
            times.append(one_side(side, folder, warm_up, out / side))
        agreement = agreement or agree(out / "ours" / "built", out / "librosa" / "built")
        shutil.rmtree(out)
    return Comparison(tuple(seconds["ours"]), tuple(seconds["librosa"])), agreement


def one_side(side: str, folder: Path, warm_up: Path, out: Path) -> float:
    """Runs one side in a fresh process and returns its seconds."""
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.build_side", side, str(folder), str(warm_up), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, cwd=Path(__file__).parents[1], env=environment, stdout=subprocess.PIPE)
    return float(json.loads(done.stdout)["seconds"])


def agree(ours: Path, peer: Path) -> str:
    """Returns a sentence about the difference between the stored codes of both sides.

    Raises:
        ValueError: other tracks, or lengths that differ by more than the peer's one frame of padding.
    """
    found, other = stored(ours), stored(peer)
    if sorted(found) != sorted(other):
        raise ValueError(f"ours stored the tracks {sorted(found)}, the peer {sorted(other)}")
    differences = []
    for track, codes_TF in found.items():
        if abs(len(codes_TF) - len(other[track])) > 2:
            raise ValueError(f"{track}: ours has {len(codes_TF)} frames, the peer {len(other[track])}")
        frames = min(len(codes_TF), len(other[track]))
        differences.append(np.abs(codes_TF[:frames].astype(int) - other[track][:frames].astype(int)).mean())
    return f"{len(found)} tracks, stored codes differ by {np.mean(differences):.1f} of 255 on average"


def hours_of(folder: Path) -> float:
    """Returns the hours of audio in a folder."""
    infos = (soundfile.info(path) for path in folder.rglob("*") if path.is_file())
    return sum(info.frames / info.samplerate for info in infos) / 3600


def rates(compared: Comparison, hours: float) -> str:
    """Returns hours of audio per core-hour of both sides, by the median round."""
    ours, peer = (hours * 3600 / float(np.median(times)) for times in (compared.ours_s, compared.peer_s))
    return f"{ours:.0f} hours of audio per core-hour, librosa {peer:.0f}"


def features(folder: Path) -> None:
    """Does our side's work on every file, without spool and shards."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        extract(path, FeatureConfig(), into=io.BytesIO())
