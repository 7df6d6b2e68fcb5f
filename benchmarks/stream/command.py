"""Our stream against webdataset, mosaicml-streaming and litdata: equal samples, cores and work.

  python -m benchmarks stream --setup ~/.cache/pupujepa/stream-peers     once: installs the peers separately
  python -m benchmarks stream                                            all settings; about a quarter of an hour
  python -m benchmarks stream --places cached --dtypes uint8 --workers 0 --rounds 5
  python -m benchmarks stream --contenders pupujepa webdataset           without the peers' environment
  python -m benchmarks stream --profile                                  profile of our side

Every contender runs in a fresh process each round. From each sample it takes the stored array, cuts the same crop of
1,024 frames, makes it float32 and normalised, and hands over batches [B, T, F], shuffled by its own means. Delivered
samples are counted and summed: a run that lost, repeated or changed a sample is void. Places: `cached` (local files in
the kernel's cache), `cold` (local files dropped from it), `s3` (a SeaweedFS on this machine, on the same cores),
`resume` (a fresh process resumes in the middle of an epoch), `resume-large` (the same in a corpus that is --times
larger, without webdataset, which would have to read all of it).
"""

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path

from benchmarks import arguments_of
from benchmarks.alternate import machine
from benchmarks.profiled import profile
from benchmarks.stream.contender import LAYOUTS, MODULES, Reading
from benchmarks.stream.corpus import CorpusConfig, Facts, converted, make_corpus
from benchmarks.stream.enlarged import enlarged
from benchmarks.stream.limits import WAYS
from benchmarks.stream.ours import open_reader
from benchmarks.stream.peers import chosen_python, default_folder, set_up, versions
from benchmarks.stream.process import ContenderError, Measured, evict, measure, warm
from benchmarks.stream.report import OURS, RAW, Setting, checked, megabytes_per_s, table
from data.store.store import open_store
from examples.local_s3 import LocalS3

BUCKET = "stream"
PLACES = ("cached", "cold", "s3", "resume", "resume-large")
PREDICTION = (
    "after a profile of one small setting. Cached, without workers, uint8: 0.65 of the best peer (litdata) in samples "
    "per CPU second, because ours parses every .npy header twice, copies the sample three times and checks its crc32; "
    "0.9 of webdataset. float16: 0.75, the copies weigh more and the parsing less. From S3 with 2 workers: 60 % of the "
    "raw GET, since decoding, sha256 and the server share two cores; ahead of litdata and mosaicml, behind webdataset, "
    "which writes nothing to disk. Resume: 20 ms without workers, 20 times faster than mosaicml; with workers 2.5 s, "
    "slower than every peer, because our workers import torch anew where theirs are forked. Memory: the most of all, "
    "for the same reason."
)


@dataclass(frozen=True)
class Stand:
    """One corpus, and the settings that all its readings share."""

    corpus: Path
    facts: Facts
    python: Path
    batch: int
    epochs: int

    def reading(self, contender: str, url: str, cache_dir: str, *, workers: int) -> Reading:
        """Returns the task of a contender in one round."""
        return Reading(contender, str(self.corpus), url, cache_dir, workers, self.batch, self.epochs)

    def run(self, reading: Reading) -> tuple[Measured | None, str]:
        """Returns the figures of a reading, or None and the reason why it is void."""
        samples = self.facts.config.samples
        try:
            found, result = measure(
                reading, python=self.python, payload_bytes=self.facts.payload_bytes, samples=samples
            )
        except ContenderError as error:
            return None, str(error)
        if reading.contender == RAW or reading.state:
            return found, ""
        crops = self.facts.checksums[: reading.epochs]
        checksum = sum(crops) if reading.contender == OURS else crops[0] * reading.epochs
        reason = checked(result, (samples, reading.epochs, checksum))
        return (None, reason) if reason else (found, "")


def main() -> None:
    """Prints a table for every setting as Markdown."""
    args = parse(arguments_of("stream"))
    if args.setup is not None:
        print(f"the peers are in {args.setup}: {set_up(args.setup)}")
        return
    if args.profile:
        args.contenders, args.places = [OURS], ["cached"]
    python = chosen_python(args.peers, args.contenders)
    print(f"{machine()}; {versions(python, args.contenders)}\n\nprediction: {PREDICTION}\n")
    for name in args.contenders:
        print(f"- shuffle of {name}: {import_shuffle(name)}")
    with ExitStack() as resources:
        folder = args.folder or Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="stream-")))
        if "s3" in args.places:
            server = resources.enter_context(LocalS3(folder / "s3", buckets=[BUCKET]))
            os.environ.update(server.environment())
        for dtype in args.dtypes:
            stand = prepare(folder / f"{dtype}-{args.samples}-{args.shard_mib:g}", dtype, python, args)
            if args.profile:
                print(f"\n### profile, {dtype}\n\n{profile(partial(read_ours, stand))}")
                continue
            for setting in settings_of(stand, args):
                print(f"\n{table(setting)}", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads what follows the benchmark's name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks stream")
    peers = [name for name in MODULES if name != RAW]
    parser.add_argument("--setup", type=Path, metavar="DIR", help="install the peers' environment there, and stop")
    parser.add_argument("--peers", type=Path, default=default_folder(), metavar="DIR", help="where it was made")
    parser.add_argument("--contenders", nargs="+", choices=peers, default=peers)
    parser.add_argument("--places", nargs="+", choices=PLACES, default=PLACES)
    parser.add_argument("--dtypes", nargs="+", choices=("uint8", "float16"), default=("uint8", "float16"))
    parser.add_argument("--workers", nargs="+", type=int, default=(0, 2), help="of cached and resume (default: 0 2)")
    parser.add_argument("--rounds", type=int, default=3, help="of every contender in every setting (default: 3)")
    parser.add_argument("--samples", type=int, default=2048, help="of an epoch, a multiple of --batch (default: 2048)")
    parser.add_argument("--epochs", type=int, default=3, help="of the cached setting (default: 3)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--times", type=int, default=500, help="copies of the corpus in resume-large (default: 500)")
    parser.add_argument("--shard-mib", type=float, default=32.0)
    parser.add_argument("--profile", action="store_true", help="profile our side, cached and without workers, and stop")
    parser.add_argument("--folder", type=Path, help="keeps corpora and S3 objects for the next time (default: nothing)")
    args = parser.parse_args(arguments)
    if args.samples % args.batch:
        parser.error(
            f"--samples {args.samples} is not a multiple of --batch {args.batch}, so samples would be dropped; "
            f"change one of them"
        )
    return args


def import_shuffle(contender: str) -> str:
    """Returns a contender's SHUFFLE from the text of its module, since this Python may lack its packages."""
    source = Path(__file__).with_name(f"{MODULES[contender].split('.')[-1]}.py").read_text()
    return next(line.split("=", 1)[1].strip(' "') for line in source.splitlines() if line.startswith("SHUFFLE"))


def prepare(corpus: Path, dtype: str, python: Path, args: argparse.Namespace) -> Stand:
    """Makes the corpus in every needed format, and uploads it if the store is measured."""
    config = CorpusConfig(dtype, args.samples, round(args.shard_mib * 2**20), args.epochs)
    facts = make_corpus(corpus, config)
    for layout in {LAYOUTS[name] for name in args.contenders}:
        folder = converted(corpus, layout, python=python)
        if "s3" in args.places:
            upload(folder, f"s3://{BUCKET}/{corpus.name}/{layout}", digest_of=corpus / "facts.json")
    return Stand(corpus, facts, python, args.batch, args.epochs)


def upload(folder: Path, url: str, *, digest_of: Path) -> None:
    """Uploads a folder to the store, unless it is there."""
    store, digest = open_store(url), sha256(digest_of.read_bytes()).hexdigest().encode()
    if store.exists("uploaded") and store.read("uploaded") == digest:
        return
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        store.upload(file, file.relative_to(folder).as_posix())
    store.write("uploaded", digest)


def settings_of(stand: Stand, args: argparse.Namespace) -> Iterator[Setting]:
    """Yields the settings of one corpus as they are measured."""
    dtype = stand.facts.config.dtype
    for place, workers in product(args.places, args.workers):
        if place in ("cold", "s3") and workers != max(args.workers):
            continue
        setting = Setting(place, dtype, workers)
        if place == "resume":
            resume_rounds(setting, stand, args.contenders, rounds=args.rounds)
        elif place == "resume-large":
            names = [name for name in args.contenders if name != "webdataset"]
            resume_rounds(setting, stand, names, rounds=args.rounds, times=args.times)
        else:
            names = [*args.contenders, RAW]
            read_rounds(setting, replace(stand, epochs=stand.epochs if place == "cached" else 1), names, args.rounds)
        yield setting


def read_ours(stand: Stand) -> None:
    """Reads all epochs in this process."""
    reading = stand.reading(OURS, str(stand.corpus / LAYOUTS[OURS]), "", workers=0)
    for _ in open_reader(reading, stand.facts).batches():
        pass


def read_rounds(setting: Setting, stand: Stand, names: Sequence[str], rounds: int) -> None:
    """Runs whole epochs with the contenders in turn; another one is first in every round."""
    way = fastest_way(stand) if setting.place == "s3" else ""
    for name in in_turn(names, rounds):
        layout = LAYOUTS[name]
        files = [path for path in (stand.corpus / layout).rglob("*") if path.is_file()]
        url = f"s3://{BUCKET}/{stand.corpus.name}/{layout}" if setting.place == "s3" else str(stand.corpus / layout)
        if setting.place == "cached":
            warm(files)
        kept = evict(files) if setting.place == "cold" else 0.0
        with tempfile.TemporaryDirectory(prefix="cache-", dir=stand.corpus) as cache_dir:
            reading = stand.reading(name, url, cache_dir, workers=setting.workers)
            found, reason = stand.run(replace(reading, way=way))
        if kept > 0.01:
            found, reason = None, f"the kernel kept {kept:.0%} of its files in memory"
        setting.add(name, found, reason=reason)


def resume_rounds(setting: Setting, stand: Stand, names: Sequence[str], *, rounds: int, times: int = 1) -> None:
    """Saves a state within an epoch once, then resumes from it in fresh processes, in turn."""
    middle = stand.facts.config.samples // stand.batch // 2
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        readings = {}
        for name in names:
            layout, state = LAYOUTS[name], str(Path(folder) / name)
            url = str(stand.corpus / layout if times == 1 else enlarged(stand.corpus, layout, times))
            reading = replace(stand.reading(name, url, folder, workers=setting.workers), state=state, epochs=1)
            _, reason = stand.run(replace(reading, pause_after=middle))
            if reason:
                setting.add(name, None, reason=reason)
            else:
                readings[name] = reading
        for name in in_turn(list(readings), rounds):
            found, reason = stand.run(readings[name])
            setting.add(name, found, reason=reason)


def in_turn(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Yields every name once per round; each round begins with the next name."""
    for number in range(rounds):
        first = number % max(len(names), 1)
        yield from [*names[first:], *names[:first]]


def fastest_way(stand: Stand) -> str:
    """Returns the way to GET the tars that is fastest here."""
    url = f"s3://{BUCKET}/{stand.corpus.name}/tar"
    rates = {}
    for way in WAYS:
        found, _ = stand.run(replace(stand.reading(RAW, url, "", workers=0), way=way))
        rates[way] = megabytes_per_s(found) if found else 0.0
    ranked = sorted(rates, key=lambda way: rates[way], reverse=True)
    print("- raw GET, MB/s by client and connections: " + ", ".join(f"{way}: {rates[way]:.0f}" for way in ranked))
    return ranked[0]
