"""Damaged audio files through the readers of `data build`, `embed` and `evaluate`: outcomes by format.

  python -m benchmarks audio_fuzz                2,000 files, about half an hour
  python -m benchmarks audio_fuzz --files 150    as in the tests

Whole files of ten kinds get flipped bits, cuts, rewritten headers, holes, and pieces of themselves or of others. Each
must be read to one length by all readers, or be refused with a sentence, within time and memory.
"""

import argparse
import io
import random
import resource
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile

from benchmarks import arguments_of
from data.building.features import FeatureConfig, extract
from distributed.marble.datasets.corpus import LabelledTrack, Slice
from distributed.marble.datasets.slice_audio import load_slice
from distributed.marble.tasks.tasks import Clips
from pupujepa.audio.clip import clip_of_file
from pupujepa.audio.containers import silent_libmpg123
from pupujepa.audio.source import measure_audio, open_audio
from pupujepa.errors import UserError

MOST_BYTES = 700 << 20  # at an odd rate near 24 kHz, a filter of 64 MB and several times as much to design it
MOST_S = 60
SECONDS = 2.6
_VARIABLE = {"bitrate_mode": "VARIABLE", "compression_level": 0.4}
# suffix, libsndfile's settings, sample rate, channels
KINDS = {
    "wav": ("wav", {}, 44_100, 2),
    "wav float": ("wav", {"subtype": "FLOAT"}, 22_050, 1),
    "flac": ("flac", {}, 44_100, 2),
    "mp3 constant": ("mp3", {"bitrate_mode": "CONSTANT", "compression_level": 0.5}, 44_100, 2),
    "mp3 variable": ("mp3", _VARIABLE, 22_050, 1),
    "ogg": ("ogg", {}, 44_100, 2),
    "opus": ("opus", {"format": "OGG", "subtype": "OPUS"}, 48_000, 2),
    "aiff": ("aiff", {}, 32_000, 2),
    "au": ("au", {}, 16_000, 1),
    "caf": ("caf", {}, 48_000, 1),
}
_FEATURES = FeatureConfig(min_frames=8)
_RATE_HZ = 24_000
_MOST_SAMPLES = 1 << 22
# embed finds the last one in its values
_ONLY_BUILD_REFUSES = ("too short", "silent", "far beyond full scale")


@dataclass(frozen=True)
class Fate:
    """What became of a file: "whole", "other length", "refused" or "wrong", and why."""

    kind: str
    outcome: str
    why: str = ""


def whole_files() -> dict[str, bytes]:
    """Returns a file of each kind, of music that never repeats."""
    files = {}
    for kind, (_, settings, rate_hz, channels) in KINDS.items():
        time_s = np.arange(int(SECONDS * rate_hz)) / rate_hz
        tones = [0.3 * np.sin(2 * np.pi * (200 + 90 * time_s) * time_s + c) for c in range(channels)]
        noise = np.random.default_rng(0).uniform(-0.05, 0.05, (len(time_s), channels))
        buffer = io.BytesIO()
        soundfile.write(buffer, np.stack(tones, 1) + noise, rate_hz, **{"format": kind.split()[0].upper(), **settings})
        files[kind] = buffer.getvalue()
    return files


def damaged_files(count: int, *, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields kinds and damaged contents, the same for the same seed."""
    whole, rng = whole_files(), random.Random(seed)
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        content = bytearray(whole[kind])
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            content = _damaged(content, rng, other=whole[rng.choice(list(KINDS))])
        yield kind, bytes(content)


def _damaged(content: bytearray, rng: random.Random, *, other: bytes) -> bytearray:
    size = len(content)
    at, length = rng.randrange(size + 1), rng.choice((1, 4, 100, 5000))
    match rng.choice(("flip", "cut", "header", "word", "hole", "loss", "repeat", "join", "tail", "behead")):
        case "flip":
            for _ in range(rng.choice((1, 10, 200)) if size else 0):
                content[rng.randrange(size)] ^= 1 << rng.randrange(8)
        case "cut":
            del content[at:]
        case "header":
            for place in rng.sample(range(min(size, 200)), min(size, rng.choice((1, 3, 10)))):
                content[place] = rng.randrange(256)
        case "word":  # lengths, rates and numbers of channels
            place = rng.randrange(0, 64, 2)
            content[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", rng.randbytes(4)))
        case "hole":
            content[at : at + length] = bytes(min(length, size - at))
        case "loss":
            del content[at : at + length]
        case "repeat":
            content[at:at] = content[at : at + length]
        case "join":
            content += other if rng.random() < 0.5 else bytes(content)
        case "tail":
            content += rng.choice((b"TAG" + bytes(125), rng.randbytes(length), bytes(length)))
        case "behead":
            del content[: min(length, size)]
    return content


def fate_of(kind: str, content: bytes) -> Fate:
    """Reads a damaged file with every reader; an exception that is no sentence, or a disagreement, is "wrong"."""
    suffix, *_ = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"song.{suffix}"
        path.write_bytes(content)
        try:
            return _read_by_all(kind, path)
        except Exception:  # noqa: BLE001 - what a fuzz looks for
            return Fate(kind, "wrong", traceback.format_exc())


def _read_by_all(kind: str, path: Path) -> Fate:
    embedded, built, evaluated = (_attempt(reader, path) for reader in (_by_embed, _by_build, _by_evaluate))
    if isinstance(embedded, str):
        agree = isinstance(built, str) and isinstance(evaluated, str)
        return Fate(kind, "refused" if agree else "wrong", f"{embedded}, {built}, {evaluated}")
    with open_audio(path) as source:
        decoded = sum(map(len, source.blocks()))
        note, announced_s = source.note, source.announced / source.rate_hz
    # evaluate believes an announced end if it is there, even if samples before it are damaged
    true_s = (embedded, announced_s) if note else (embedded,)
    if isinstance(evaluated, str) and "its format changes" in evaluated:  # seen only after a seek
        return Fate(kind, "refused", evaluated)
    if isinstance(evaluated, str) or min(abs(evaluated - s) for s in true_s) > 1e-3:
        return Fate(kind, "wrong", f"embed and evaluate disagree: {embedded}, {evaluated}")
    if built != embedded and not any(reason in str(built) for reason in _ONLY_BUILD_REFUSES):
        return Fate(kind, "wrong", f"embed and build disagree: {embedded}, {built}")
    plain_s = _by_libsndfile(path)
    if plain_s is not None and decoded / source.rate_hz < plain_s - 0.001:
        return Fate(kind, "wrong", f"lost music: {decoded / source.rate_hz} s of {plain_s} s")
    return Fate(kind, "other length" if note else "whole", note)


def _attempt(reader, path: Path) -> float | str:
    try:
        return reader(path)
    except UserError as error:
        assert path.name in str(error), error
        return str(error)


def _by_embed(path: Path) -> float:
    clip = clip_of_file(path, _RATE_HZ)
    assert len(clip.read(0, clip.samples)) == clip.samples
    return clip.samples / _RATE_HZ


def _by_build(path: Path) -> float:
    into = io.BytesIO()
    facts = extract(path, _FEATURES, into=into)
    assert len(into.getvalue()) == sum(part.bytes for part in facts.parts)
    exact_s = clip_of_file(path, _RATE_HZ).samples / _RATE_HZ
    assert facts.frames == int(exact_s * 100 + 1e-6), (facts.frames, exact_s)
    return exact_s


def _by_evaluate(path: Path) -> float:
    facts = measure_audio(path)
    track = LabelledTrack("song", path, "test", "song", 0.0, {}, rate_hz=facts.rate_hz, num_samples=facts.samples)
    held = 0.0
    for index in range(int(facts.samples / facts.rate_hz) + 1):
        window_S = load_slice(track, Slice("song", index), Clips(seconds=1.0, max_slices=None), rate_hz=facts.rate_hz)
        held += min(len(window_S), facts.samples - index * facts.rate_hz) / facts.rate_hz
    return _rounded_up(held, facts.rate_hz)


def _rounded_up(seconds: float, rate_hz: int) -> float:
    """Returns the length after resampling to the rate of the features."""
    return -(-round(seconds * rate_hz) * _RATE_HZ // rate_hz) / _RATE_HZ


def _by_libsndfile(path: Path) -> float | None:
    """Returns what libsndfile reads by itself, or None if it cannot; of joined files it reads the first."""
    try:
        with silent_libmpg123(), soundfile.SoundFile(path) as file:  # in one piece: soundfile would seek between pieces
            return len(file.read(min(file.frames, _MOST_SAMPLES))) / file.samplerate
    except (soundfile.LibsndfileError, ValueError):
        return None


def fates(count: int, *, seed: int = 0) -> Iterator[Fate]:
    """Yields the fate of each file; they are read in another process, which is limited in time.

    Raises:
        TimeoutError: a file took longer than a minute.
        BrokenProcessPool: a file ended the process.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as reader:
        base = reader.submit(peak_bytes).result()
        for kind, content in damaged_files(count, seed=seed):
            yield reader.submit(fate_of, kind, content).result(timeout=MOST_S)
        grown = reader.submit(peak_bytes).result() - base
    yield Fate("memory", "whole" if grown < MOST_BYTES else "wrong", f"grew by {grown >> 20} MiB at most")


def peak_bytes() -> int:
    """Returns the largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Prints the number of files by kind and outcome, and everything that is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks audio_fuzz")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments_of("audio_fuzz"))
    counts: Counter[tuple[str, str]] = Counter()
    outcomes = ("whole", "other length", "refused", "wrong")
    for fate in fates(args.files, seed=args.seed):
        counts[fate.kind, fate.outcome] += 1
        if fate.outcome == "wrong" or fate.kind == "memory":
            print(f"{fate.kind}: {fate.outcome}: {fate.why}")
    print(f"\n| format | {' | '.join(outcomes)} |\n|---|{'---|' * len(outcomes)}")
    for kind in KINDS:
        print(f"| {kind} | {' | '.join(str(counts[kind, outcome]) for outcome in outcomes)} |")


if __name__ == "__main__":
    main()
