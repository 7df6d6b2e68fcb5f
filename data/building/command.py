"""Turns audio into log-mel shards with a manifest: WebDataset tars that train as they stream.

  python -m data build songs/ shards/                                     a folder of audio, all of it for training
  python -m data build songs/ shards/ --split-fractions 0.9,0.05,0.05     split by album folder, by a seeded hash
  python -m data build tracks.csv shards/ --group-by artist ...           a list; no artist is in two splits
  python -m data build corpora/scores/tracks.jsonl s3://bucket/scores     a list with splits and labels
  python -m data build 's3://raw/audio-{000..099}.tar' s3://bucket/shards  WebDataset tars of audio

INPUT is a folder (wav, flac, mp3, ogg, opus, ... of any rate and channels), a list, or tars; here or on s3://.
  .jsonl     a track a line: {"path": "a.flac", "track": unique name, "start": 12.5, "end": 42.5 (seconds: a stretch of
             a file is a track), "source": collection, "split": "train" | "valid" | "test", "group": tracks of a group
             share a split, "labels": {...}}; only path is required: relative to the list, absolute or a url
  .csv .tsv  the same names as columns; every other column is a label
  .tar       one or several, a pattern ('audio-*.tar', 'audio-{000..099}.tar'), a folder of them, or a .txt with one a
             line; members are KEY.flac (.mp3, .wav, .ogg, .opus), and optionally KEY.json with labels

OUT gets one folder per split (OUT/train, ...) of shards, their .idx and a manifest.json that is written last, beside
build.json (how it was built), rejected.jsonl (tracks that were left out, and why) and duplicates.jsonl (tracks of
exactly equal audio). A killed build resumes when run again and ends with the same bytes. The same input and seed give
the same shards for any number of workers and parts.

Links are followed. At the end, a summary accounts for every file: built, too short, silent, damaged (corrupt, empty,
NaN), missing, or passed over. A file that cannot be read now (rights, a failing disk) ends the build after the others;
mend it, and the same command finishes the rest.

Many machines: run the same command with --part 1/8 ... --part 8/8, in any order, again after a kill; each makes the
features of its share. Then run it once with --merge 8, which names unfinished parts. The machines share OUT, or
--work-dir (a folder or s3://). With SLURM: slurm/build.sbatch.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from types import FrameType

from data.building.build import Build
from data.building.config import BuildConfig
from data.building.duplicates import DUPLICATES_NAME, duplicates_summary, leak
from data.building.features import FeatureConfig
from data.building.inputs import BuildInputError, read_inputs
from data.building.shares import Share, parse_share
from data.building.tracks import quantity
from data.pool import available_cores
from data.shards.format import DTYPES
from data.shards.manifest import Manifest
from data.store.files import Location
from data.store.store import LocalStore
from pupujepa.audio.find import PassedOver
from pupujepa.durable import FULL_DISK, private_folder
from pupujepa.errors import UserError

_LOG = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `build`."""
    parser.add_argument("input", nargs="+", metavar="INPUT", help="folder, list or tars, as above")
    parser.add_argument("out", metavar="OUT", help="folder or s3:// url of the corpus")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="uint8",
        help="uint8: half the bytes of float16, error under 0.028 (natural log)",
    )
    parser.add_argument("--shard-mib", type=float, default=256.0, help="approximate shard size (default 256)")
    parser.add_argument("--part-frames", type=int, default=3072, help="longest sample, 10 ms each (default 3072)")
    parser.add_argument(
        "--min-frames", type=int, default=256, help="shorter tracks are left out (default 256 = 2.56 s)"
    )
    parser.add_argument(
        "--split-fractions",
        type=_fractions,
        default=(1.0, 0.0, 0.0),
        metavar="TRAIN,VALID,TEST",
        help="shares of the tracks without a split (default 1,0,0); a folder of audio stays together",
    )
    parser.add_argument(
        "--group-by",
        metavar="LABEL",
        help="tracks with equal values of this label share a split; a missing label is an error",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of shuffle and split (default 0)")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: all cores)")
    parser.add_argument(
        "--max-rejected",
        type=float,
        default=0.01,
        help="maximum of damaged or missing tracks: a share, or a number >= 1 (default 0.01); more stop the build",
    )
    parser.add_argument(
        "--drop-duplicates",
        action="store_true",
        help="of tracks with exactly equal audio, keep only the first of the input",
    )
    parser.add_argument(
        "--work-dir",
        metavar="DIR",
        help="folder for intermediate files (default OUT/.work; a temporary one if OUT is on s3:// and not shared)",
    )
    parser.add_argument("--replace", action="store_true", help="replace another corpus in OUT")
    shared = parser.add_mutually_exclusive_group()
    shared.add_argument("--part", metavar="I/N", help="make only the features of the i-th of n shares")
    shared.add_argument("--merge", type=int, metavar="N", help="only pack the features of N parts")


def run(args: argparse.Namespace) -> int:
    """Builds, and prints a line per split and a summary."""
    _require_positive(args)
    share = parse_share(args.part) if args.part else None
    passed_over = PassedOver()
    with _stoppable():
        build = _build(args, passed_over, is_shared=share is not None or args.merge is not None)
        with build.reserved(is_part=share is not None):
            if build.is_complete():
                if share is None:
                    build.clean()
                sys.stdout.write(f"{args.out} holds exactly this build already; nothing to do\n")
            elif share is not None:
                _run_share(build, share, replace=args.replace)
            else:
                _run_whole(build, args.merge, replace=args.replace)
                sys.stdout.writelines(f"{line}\n" for line in (*build.summary, *passed_over.lines()))
    return 0


def _run_whole(build: Build, parts: int | None, *, replace: bool) -> None:
    with _room_on_disk(build):
        manifests = build.run(replace=replace) if parts is None else build.merge(parts, replace=replace)
    sys.stdout.writelines(_line(split, manifest) for split, manifest in manifests.items())
    _tell_duplicates(build)


def _run_share(build: Build, share: Share, *, replace: bool) -> None:
    with _room_on_disk(build):
        facts = build.run_share(share, replace=replace)
    left_out = sum(bool(found.rejected) for found in facts.values())
    sys.stdout.write(
        f"part {share}: {len(facts)} of {quantity(len(build.tracks), 'track')}, {left_out} left out; when all parts "
        f"are done, run --merge {share.of}\n"
    )


@contextmanager
def _room_on_disk(build: Build) -> Iterator[None]:
    """Raises UserError if a disk is full, also one that a worker wrote to."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise UserError(
            f"no room for {build.url} or its intermediate files in {build.work} ({error.strerror}); free some, then "
            "run the same command again, which keeps what is done"
        ) from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ends the build in order on Ctrl-C, SIGTERM and SIGHUP; a second signal ends it at once.

    Raises:
        SystemExit: with 128 + the number of the signal, as a shell reports it.
    """
    if threading.current_thread() is not threading.main_thread():  # it alone gets signals
        yield
        return
    # under nohup, SIGHUP is ignored, and stays so
    signals = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
    earlier = {number: signal.getsignal(number) for number in signals}
    stopped_by: list[str] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        stopped_by.append(signal.Signals(number).name)
        raise SystemExit(128 + number)

    for number in signals:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        if stopped_by:
            with suppress(OSError):  # after a hang-up the terminal may be gone
                sys.stderr.write(
                    f"stopped by {stopped_by[0]}; finished tracks are kept: run the same command to continue\n"
                )


def _build(args: argparse.Namespace, passed_over: PassedOver, *, is_shared: bool) -> Build:
    config = BuildConfig(
        features=FeatureConfig(dtype=args.dtype, part_frames=args.part_frames, min_frames=args.min_frames),
        shard_bytes=round(args.shard_mib * (1 << 20)),
        seed=args.seed,
        split_fractions=args.split_fractions,
        max_rejected=args.max_rejected,
        drop_duplicates=args.drop_duplicates,
        group_by=args.group_by,
    )
    tracks = read_inputs(
        args.input,
        seed=args.seed,
        fractions=args.split_fractions,
        group_by=args.group_by,
        workers=args.workers,
        passed_over=passed_over,
    )
    inside = next((t for t in tracks if t.audio.url.startswith(f"{args.out.rstrip('/')}/")), None)
    if inside is not None and inside.audio.member is not None:
        raise BuildInputError(
            f"{inside.audio.url} is in OUT, where the shards are tars too; choose an OUT beside INPUT"
        )
    build = Build(tracks, args.out, config=config, work="", workers=args.workers)
    build.work = args.work_dir or _work(build, is_shared=is_shared)
    return build


def _work(build: Build, *, is_shared: bool) -> Location:
    """Returns the folder of intermediate files, the same when the command is run again."""
    if is_shared or isinstance(build.store, LocalStore):
        return build.store.locate(".work")
    name = sha256(build.store.url.encode()).hexdigest()[:16]  # one build at a time writes to a url
    return str(private_folder(Path(tempfile.gettempdir()) / f"pupujepa-build-{os.getuid()}-{name}"))


def _line(split: str, manifest: Manifest) -> str:
    return (
        f"{split}: {quantity(manifest.tracks, 'track')}, {manifest.audio_hours:.2f} h, "
        f"{quantity(manifest.samples, 'sample')} in {quantity(len(manifest.shards), 'shard')}, "
        f"{sum(s.bytes for s in manifest.shards) / 1e6:.1f} MB, mean "
        f"{manifest.mean:.4f}, std {manifest.std:.4f}, {manifest.clipped_values} values clipped, digest "
        f"{manifest.digest[:12]}\n"
    )


def _tell_duplicates(build: Build) -> None:
    dropped, where = build.config.drop_duplicates, build.store.locate(DUPLICATES_NAME)
    if line := duplicates_summary(build.duplicates, dropped=dropped, where=where):
        sys.stdout.write(f"{line}\n")
    if warning := leak(build.duplicates, dropped=dropped):
        _LOG.warning(warning)


def _require_positive(args: argparse.Namespace) -> None:
    for name in ("shard_mib", "part_frames", "min_frames", "workers", "merge"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} is {value:g}; use a number above 0")
    if args.max_rejected < 0:
        raise UserError(f"--max-rejected is {args.max_rejected:g}; use a share below 1 or a number of files")


def _fractions(text: str) -> tuple[float, ...]:
    return tuple(float(share) for share in text.split(","))
