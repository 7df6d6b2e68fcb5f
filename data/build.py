"""Turns audio into log-mel shards with a manifest: WebDataset tars that train as they stream.

  python -m data build songs/ shards/                                        a folder of audio, all of it for training
  python -m data build songs/ shards/ --split-fractions 0.9,0.05,0.05        split by album folder, by a seeded hash
  python -m data build corpora/scores/tracks.jsonl s3://bucket/scores        a list with splits and labels

OUT gets one folder per split (OUT/train, ...) of shards, their .idx and a manifest.json that is written last, beside
build.json (how it was built) and rejected.jsonl (files that could not be used, and why). Killed at any moment and run
again, it goes on and ends with the same bytes; the same input and seed give the same shards for any number of workers.

Each line of a list is one track: {"track": unique name, "path": relative to the list, "source": collection,
"split": "train" | "valid" | "test", "group": what must not be split, "labels": {...}}; the first two are required.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from data.corpus import Track, read_corpus
from data.features import FeatureConfig, TrackFacts, spool_id, spool_track, spooled_facts
from data.manifest import MANIFEST_NAME, SPLITS, Manifest, ShardEntry, write_manifest
from data.packing import PlannedShard, SpooledTrack, pack_shard, plan_shards
from data.pool import available_cores, map_unordered
from data.shards import DTYPES, index_name
from data.store import LocalStore, Store, open_store
from pupujepa.errors import UserError
from pupujepa.frontend import frontend_digest
from pupujepa.progress import Progress

RECORD_NAME = "build.json"
REJECTED_NAME = "rejected.jsonl"


@dataclass(frozen=True)
class BuildConfig:
    """What a build makes of its input.

    Args:
        max_rejected: below 1 a share of the inputs, from 1 on a number of them; more stop the build.
        shard_bytes: about how large a shard becomes.
    """

    features: FeatureConfig = field(default_factory=FeatureConfig)
    shard_bytes: int = 256 << 20
    seed: int = 0
    split_fractions: tuple[float, float, float] = (1.0, 0.0, 0.0)
    max_rejected: float = 0.01


class Build:
    """One build: from tracks to manifests. Every step leaves whole files, so that the next run takes it up from there.

    Args:
        tracks: the input.
        url: of the corpus; its splits are folders in it.
        work: local folder for what is only needed while building; removed at the end.
        workers: processes.
    """

    def __init__(self, tracks: Sequence[Track], url: str, *, config: BuildConfig, work: Path, workers: int):
        self.tracks, self.url, self.config, self.work, self.workers = tracks, url, config, work, workers
        self.store = open_store(url)
        self.frames_per_s = config.features.frontend.frames_per_s
        self.names = [spool_id(track, config.features) for track in tracks]
        self.digest = input_digest(tracks, self.names, config)

    def run(self, *, replace: bool = False) -> dict[str, Manifest]:
        """Builds all splits and returns their manifests.

        Raises:
            UserError: too many rejected inputs, no usable audio, no training audio, or OUT holds another build.
        """
        self._refuse_other_build(replace=replace)
        self.work.mkdir(parents=True, exist_ok=True)
        spooled, rejected = self._make_features()
        self.store.write(REJECTED_NAME, b"".join(_json_line(row) for row in rejected))
        self._judge_rejected(rejected, spooled)
        shards = {split: self._plan(spooled, split) for split in SPLITS}
        entries = self._pack([shard for planned in shards.values() for shard in planned])
        self._remove_strangers({name for planned in shards.values() for shard in planned for name in _files(shard)})
        manifests = self._manifests(spooled, {split: [entries[s.name] for s in shards[split]] for split in SPLITS})
        self.store.write(RECORD_NAME, self._record(len(rejected), splits=sorted(manifests)))
        # the training split last: whoever waits for it finds the others there
        for split in reversed(SPLITS):
            if split in manifests:
                write_manifest(self.store.locate(split), manifests[split])
        self.clean()
        return manifests

    def clean(self) -> None:
        """Removes what was only needed while building; a folder of the user's with other things in it stays."""
        shutil.rmtree(self.work / "spool", ignore_errors=True)
        if self.work.is_dir() and not any(self.work.iterdir()):
            self.work.rmdir()

    def is_complete(self) -> bool:
        """Whether OUT already holds exactly this build."""
        recorded = read_record(self.store)
        return recorded is not None and recorded["digest"] == self.digest and _complete(self.store, recorded["splits"])

    def _refuse_other_build(self, *, replace: bool) -> None:
        published = [split for split in SPLITS if self.store.exists(f"{split}/{MANIFEST_NAME}")]
        recorded = read_record(self.store)
        if published and not (recorded and recorded["digest"] == self.digest) and not replace:
            raise UserError(
                f"{self.url} already holds another corpus ({', '.join(published)}), on which runs may depend; choose "
                "another OUT, or replace it for good with --replace"
            )
        # without a manifest nobody takes what follows for a complete set
        for split in published:
            self.store.remove(f"{split}/{MANIFEST_NAME}")

    def _make_features(self) -> tuple[list[SpooledTrack], list[dict[str, str]]]:
        spool, known = self.work / "spool", {}
        spool.mkdir(exist_ok=True)
        for position, name in enumerate(self.names):
            facts = spooled_facts(spool, name)
            if facts is not None:
                known[position] = facts
        todo = [(i, (self.tracks[i], self.names[i])) for i in range(len(self.tracks)) if i not in known]
        work = partial(_spool_one, spool=spool, config=self.config.features)
        hours = 0.0
        with Progress(len(self.tracks), title="features", unit="tracks") as progress:
            if known:
                progress.advance(note="from an earlier run", count=len(known))
            for position, facts in map_unordered(work, todo, workers=self.workers, preload="data.features"):
                known[position] = facts
                hours += self._hours(facts.frames)
                progress.advance(note=f"{hours / (progress.elapsed_s / 60):.2f} h of audio per minute")
        done = [SpooledTrack(self.tracks[i], self.names[i], known[i]) for i in range(len(self.tracks))]
        rejected = [{"track": t.track.track, "reason": t.facts.rejected} for t in done if t.facts.rejected]
        return [t for t in done if not t.facts.rejected], rejected

    def _judge_rejected(self, rejected: Sequence[dict[str, str]], spooled: Sequence[SpooledTrack]) -> None:
        count, limit, total = len(rejected), self.config.max_rejected, len(self.tracks)
        where = f"see {self.store.locate(REJECTED_NAME)}"
        if count and not spooled:
            raise UserError(f"none of {total} files can be used, the first because: {rejected[0]['reason']}; {where}")
        if count > (limit * total if limit < 1 else limit):
            raise UserError(
                f"{count} of {total} files cannot be used, more than --max-rejected {limit:g} allows, the first "
                f"because: {rejected[0]['reason']}; {where}, then repair or remove them, or raise the limit"
            )
        if not any(t.track.split == "train" for t in spooled):
            raise UserError("no track is in the training split, whose mean and deviation every split needs; add some")

    def _plan(self, spooled: Sequence[SpooledTrack], split: str) -> list[PlannedShard]:
        return plan_shards(
            spooled,
            split,
            seed=self.config.seed,
            shard_bytes=self.config.shard_bytes,
            frames_per_s=self.frames_per_s,
        )

    def _pack(self, shards: Sequence[PlannedShard]) -> dict[str, ShardEntry]:
        work = partial(_pack_one, spool=self.work / "spool", url=self.url)
        entries: dict[str, ShardEntry] = {}
        written_bytes = 0
        with Progress(len(shards), title="shards", unit="shards") as progress:
            for position, entry in map_unordered(
                work, list(enumerate(shards)), workers=min(self.workers, len(shards)), preload="data.packing"
            ):
                entries[shards[position].name] = entry
                written_bytes += entry.bytes
                progress.advance(note=f"{written_bytes / progress.elapsed_s / 1e6:.0f} MB/s")
        return entries

    def _remove_strangers(self, planned: set[str]) -> None:
        """Removes shards of an earlier plan: a reader who takes every tar of the folder would find them."""
        for path in self.store.list():
            split, _, name = path.partition("/")
            if split in SPLITS and name.startswith(f"{split}-") and ".tar" in name and path not in planned:
                self.store.remove(path)

    def _manifests(self, spooled: Sequence[SpooledTrack], entries: dict[str, list[ShardEntry]]) -> dict[str, Manifest]:
        features = self.config.features
        mean, std = moments([t.facts for t in spooled if t.track.split == "train"], features.frontend.mel_bands)
        manifests = {}
        for split in SPLITS:
            facts = [t.facts for t in spooled if t.track.split == split]
            if facts:
                manifests[split] = Manifest(
                    split=split,
                    frontend=asdict(features.frontend),
                    frontend_digest=frontend_digest(features.frontend),
                    dtype=features.dtype,
                    lo=features.lo,
                    hi=features.hi,
                    mean=mean,
                    std=std,
                    audio_hours=self._hours(sum(f.frames for f in facts)),
                    tracks=len(facts),
                    shards=tuple(entries[split]),
                    clipped_values=sum(f.clipped for f in facts),
                )
        return manifests

    def _record(self, rejected: int, *, splits: list[str]) -> bytes:
        config = asdict(self.config)
        config["features"].pop("frontend")
        record = {"digest": self.digest, "inputs": len(self.tracks), "rejected": rejected, "splits": splits}
        return (json.dumps({**record, "config": config}, indent=1, sort_keys=True) + "\n").encode()

    def _hours(self, frames: int) -> float:
        return frames / self.frames_per_s / 3600


def moments(facts: Sequence[TrackFacts], mel_bands: int) -> tuple[float, float]:
    """Returns mean and standard deviation over all stored values, by sums that do not depend on the order of tracks."""
    count = sum(f.frames for f in facts) * mel_bands
    mean = math.fsum(f.total for f in facts) / count
    return mean, math.sqrt(max(math.fsum(f.total_of_squares for f in facts) / count - mean * mean, 0.0))


def input_digest(tracks: Sequence[Track], names: Sequence[str], config: BuildConfig) -> str:
    """Returns the identity of a build: of its files (by path, size and time of change), labels and settings."""
    # how many files may fail changes no byte: a build that stopped for it goes on when it is raised
    digest = sha256(json.dumps(asdict(replace(config, max_rejected=0)), sort_keys=True).encode())
    for track, name in zip(tracks, names, strict=True):
        digest.update(json.dumps([track.track, track.source, track.split, track.labels, name], sort_keys=True).encode())
    return digest.hexdigest()


def read_record(store: Store) -> dict[str, Any] | None:
    """Returns what build.json says, or None when there is none."""
    return json.loads(store.read(RECORD_NAME)) if store.exists(RECORD_NAME) else None


def _complete(store: Store, splits: Sequence[str]) -> bool:
    return all(store.exists(f"{split}/{MANIFEST_NAME}") for split in splits)


def _files(shard: PlannedShard) -> tuple[str, str]:
    return f"{shard.split}/{shard.name}", f"{shard.split}/{index_name(shard.name)}"


def _json_line(row: dict[str, str]) -> bytes:
    return (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _spool_one(item: tuple[Track, str], *, spool: Path, config: FeatureConfig) -> TrackFacts:
    return spool_track(item[0], name=item[1], spool=spool, config=config)


def _pack_one(shard: PlannedShard, *, spool: Path, url: str) -> ShardEntry:
    return pack_shard(shard, spool=spool, url=open_store(url).locate(shard.split))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `build`."""
    parser.add_argument("input", type=Path, metavar="INPUT", help="folder of audio, or a tracks.jsonl list")
    parser.add_argument("out", metavar="OUT", help="folder or s3:// url of the corpus")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="uint8",
        help="uint8: half the bytes of float16, error under 0.028 (natural log)",
    )
    parser.add_argument("--shard-mib", type=float, default=256.0, help="about the size of a shard (default 256)")
    parser.add_argument("--part-frames", type=int, default=3072, help="longest sample, 10 ms each (default 3072)")
    parser.add_argument(
        "--min-frames", type=int, default=256, help="shorter tracks are rejected (default 256 = 2.56 s)"
    )
    parser.add_argument(
        "--split-fractions",
        type=_fractions,
        default=(1.0, 0.0, 0.0),
        metavar="TRAIN,VALID,TEST",
        help="shares of tracks that a list gives no split (default 1,0,0); a folder of audio stays together",
    )
    parser.add_argument("--seed", type=int, default=0, help="of shuffle and split (default 0)")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: all cores)")
    parser.add_argument(
        "--max-rejected",
        type=float,
        default=0.01,
        help="unusable files to bear: a share, or a number >= 1 (default 0.01)",
    )
    parser.add_argument(
        "--work-dir", type=Path, help="for what is needed while building (default OUT/.work, or a temp dir)"
    )
    parser.add_argument("--replace", action="store_true", help="replace another corpus in OUT")


def run(args: argparse.Namespace) -> int:
    """Builds, and says what came out."""
    _require_positive(args)
    config = BuildConfig(
        features=FeatureConfig(dtype=args.dtype, part_frames=args.part_frames, min_frames=args.min_frames),
        shard_bytes=round(args.shard_mib * (1 << 20)),
        seed=args.seed,
        split_fractions=args.split_fractions,
        max_rejected=args.max_rejected,
    )
    tracks = read_corpus(args.input, seed=args.seed, fractions=args.split_fractions)
    build = Build(tracks, args.out, config=config, work=Path(), workers=args.workers)
    build.work = args.work_dir or _work_dir(build)
    if build.is_complete():
        build.clean()
        sys.stdout.write(f"{args.out} holds exactly this build already; nothing to do\n")
        return 0
    for split, manifest in build.run(replace=args.replace).items():
        sys.stdout.write(
            f"{split}: {manifest.tracks} tracks, {manifest.audio_hours:.2f} h, {manifest.samples} samples in "
            f"{len(manifest.shards)} shards, {sum(s.bytes for s in manifest.shards) / 1e6:.1f} MB, mean "
            f"{manifest.mean:.4f}, std {manifest.std:.4f}, {manifest.clipped_values} values clipped, digest "
            f"{manifest.digest[:12]}\n"
        )
    return 0


def _work_dir(build: Build) -> Path:
    if isinstance(build.store, LocalStore):
        return build.store.root / ".work"
    return Path(tempfile.gettempdir()) / f"pupujepa-build-{build.digest[:16]}"


def _require_positive(args: argparse.Namespace) -> None:
    for name in ("shard_mib", "part_frames", "min_frames", "workers"):
        if getattr(args, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name):g}; use a number above 0")
    if args.max_rejected < 0:
        raise UserError(f"--max-rejected is {args.max_rejected:g}; use a share below 1 or a number of files")


def _fractions(text: str) -> tuple[float, ...]:
    return tuple(float(share) for share in text.split(","))
