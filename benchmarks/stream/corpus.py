"""Corpora of the streaming benchmark: synthetic samples as our shards and in the peers' formats.

Folder of a corpus: `tar` (our shards, which webdataset reads too), `mds` (mosaicml-streaming), `litdata`, and
`facts.json` (sizes, crops and checksums). Codes are random, so compression helps no format.
Shapes: T frames, F mel bands.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from data.reading.reader import ShardReader
from data.shards.format import encode_mel, index_name, write_index, write_shard
from data.shards.manifest import Manifest, ShardEntry, write_manifest
from data.store.store import open_store
from data.stream.batches import crop_start
from pupujepa.audio.log_mel import LOG_FLOOR, FrontendConfig, frontend_digest
from pupujepa.durable import atomic_file

LO, HI = LOG_FLOOR, 2.71
MEAN, STD = -4.0, 2.0
SEED = 0
MEL_BANDS = 128
CROP_FRAMES = 1024
FORMATS = ("tar", "mds", "litdata")
# every 64th frame and every 16th band of a crop are summed: enough to detect a wrong crop, at almost no cost
CHECKED = (slice(None, None, 64), slice(None, None, 16))


@dataclass(frozen=True)
class CorpusConfig:
    """Size of a corpus.

    Args:
        dtype: "uint8" or "float16".
        shard_bytes: approximate size of a shard, or chunk, in every format.
        epochs: number of epochs of our crops that have a checksum.
    """

    dtype: str
    samples: int
    shard_bytes: int
    epochs: int
    frames_min: int = 2048
    frames_max: int = 3072


@dataclass(frozen=True)
class Facts:
    """Expected sizes, crops and checksums of a corpus.

    Args:
        payload_bytes: of the stored arrays of all samples.
        starts: first frame of each sample's crop in epoch 0, by uid.
        checksums: sum of the checked values of all crops (absolute, normalised), by epoch of our stream.
    """

    config: CorpusConfig
    payload_bytes: int
    starts: dict[str, int]
    checksums: tuple[float, ...]


def read_facts(corpus: Path) -> Facts:
    """Returns the facts of an existing corpus."""
    raw = json.loads((corpus / "facts.json").read_text())
    return Facts(**{**raw, "config": CorpusConfig(**raw["config"]), "checksums": tuple(raw["checksums"])})


def make_corpus(corpus: Path, config: CorpusConfig) -> Facts:
    """Writes our shards and the facts unless they exist; returns the facts."""
    if (corpus / "facts.json").is_file() and read_facts(corpus).config == config:
        return read_facts(corpus)
    per_shard = max(1, config.shard_bytes // (stored_bytes(config.dtype) * _mean_frames(config)))
    store, entries = open_store(str(corpus / "tar")), []
    starts: dict[str, int] = {}
    checksums, payload_bytes = [0.0] * config.epochs, 0
    (corpus / "tar").mkdir(parents=True, exist_ok=True)
    for shard, first in enumerate(range(0, config.samples, per_shard)):
        rows = [sample(number, config) for number in range(first, min(first + per_shard, config.samples))]
        for row in rows:
            payload_bytes += row["mel"].nbytes
            starts[row["info"]["uid"]] = start_of(row, epoch=0)
            for epoch in range(config.epochs):
                checksums[epoch] += checksum_of(row, epoch=epoch)
        name = f"train-{shard:06d}.tar"
        with atomic_file(corpus / "tar" / name) as temporary, temporary.open("wb") as stream:
            written = write_shard(stream, rows)
        index = write_index(written.index)
        store.write(index_name(name), index)
        frames = sum(row["info"]["frames"] for row in rows)
        digests = (written.sha256, sha256(index).hexdigest())
        entries.append(ShardEntry(name, len(rows), frames, written.bytes, *digests))
    write_manifest(str(corpus / "tar"), _manifest(config, entries))
    facts = Facts(config, payload_bytes, starts, tuple(checksums))
    with atomic_file(corpus / "facts.json") as temporary:
        temporary.write_text(json.dumps(asdict(facts)))
    return facts


def stored_bytes(dtype: str) -> int:
    """Returns the bytes of one stored frame."""
    return MEL_BANDS * np.dtype(dtype).itemsize


def sample(number: int, config: CorpusConfig) -> dict[str, Any]:
    """Returns sample `number`: {"info", "mel": stored [T, F]}; both dtypes hold the same codes' values."""
    frames = config.frames_min + number * 37 % (config.frames_max - config.frames_min + 1)
    codes_TF = np.random.default_rng((SEED, number)).integers(0, 256, (frames, MEL_BANDS), dtype=np.uint8)
    mel_TF = LO + codes_TF * np.float32((HI - LO) / 255)
    info: dict[str, Any] = {"uid": f"track{number:06d}-0000", "track": f"track{number:06d}", "source": "synthetic"}
    info |= {"start_s": 0.0, "duration_s": frames / 100, "frames": frames}
    stored_TF = codes_TF if config.dtype == "uint8" else encode_mel(mel_TF, config.dtype, lo=LO, hi=HI)
    return {"info": info, "mel": stored_TF}


def start_of(row: dict[str, Any], *, epoch: int) -> int:
    """Returns the first frame of the crop that our stream takes of a sample."""
    return crop_start(len(row["mel"]), CROP_FRAMES, key=(SEED, epoch, row["info"]["uid"], 0))


def checksum_of(row: dict[str, Any], *, epoch: int) -> float:
    """Returns the sum of the checked values of a sample's crop, in float64 from the stored values."""
    start = start_of(row, epoch=epoch)
    crop = row["mel"][start : start + CROP_FRAMES][CHECKED].astype(np.float64)
    values = LO + crop * ((HI - LO) / 255) if row["mel"].dtype == np.uint8 else crop
    return float(np.abs((values - MEAN) / STD).sum())


def converted(corpus: Path, layout: str, *, python: Path) -> Path:
    """Returns the folder in a peer's format; the peer writes it unless it exists."""
    folder, done = corpus / layout, corpus / f"{layout}.done"
    facts_digest = sha256((corpus / "facts.json").read_bytes()).hexdigest()
    if layout != "tar" and not (done.is_file() and done.read_text() == facts_digest):
        done.unlink(missing_ok=True)
        command = [str(python), "-m", "benchmarks.stream.corpus", str(corpus), layout]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
        done.write_text(facts_digest)
    return folder


def stored_samples(corpus: Path) -> Iterator[dict[str, Any]]:
    """Yields {"uid", "info": JSON text, "mel": stored [T, F]} of every sample, in the order of our shards."""
    from data.shards.manifest import read_manifest

    manifest = read_manifest(str(corpus / "tar"))
    reader = ShardReader(str(corpus / "tar"), manifest)
    for shard, entry in enumerate(manifest.shards):
        for index in range(entry.samples):
            raw = reader.read_raw(shard, index)
            yield {"uid": raw.uid, "info": json.dumps(raw.info), "mel": raw.stored}
    reader.close()


def _manifest(config: CorpusConfig, entries: list[ShardEntry]) -> Manifest:
    frontend = FrontendConfig()
    return Manifest(
        split="train",
        frontend=asdict(frontend),
        frontend_digest=frontend_digest(frontend),
        dtype=config.dtype,
        lo=LO,
        hi=HI,
        mean=MEAN,
        std=STD,
        audio_hours=sum(entry.frames for entry in entries) / frontend.frames_per_s / 3600,
        tracks=config.samples,
        shards=tuple(entries),
    )


def _mean_frames(config: CorpusConfig) -> int:
    return (config.frames_min + config.frames_max) // 2


def _convert() -> None:
    from importlib import import_module
    from shutil import rmtree

    parser = argparse.ArgumentParser(description="Writes a corpus in a peer's format; runs under the peers' Python.")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("layout", choices=FORMATS[1:])
    args = parser.parse_args()
    rmtree(args.corpus / args.layout, ignore_errors=True)
    module = {"mds": "benchmarks.stream.mosaicml", "litdata": "benchmarks.stream.litdata"}[args.layout]
    import_module(module).convert(args.corpus, args.corpus / args.layout)


if __name__ == "__main__":
    _convert()
