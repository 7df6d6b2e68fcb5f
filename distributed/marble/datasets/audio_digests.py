"""Digests of whole audio files, so that features are never used for other audio.

Hundreds of gigabytes are read once: ranks share the files, and a list beside the features stores each digest with the
file's mark: size, times and inode. Writing to a file changes its ctime, which programs cannot set, so an equal mark
means equal bytes. Files changed in the last seconds are not stored, because clocks are coarse.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import file_digest, sha256
from pathlib import Path

from data.store.store import Location, MissingObjectError, open_store
from distributed.marble.datasets.corpus import LabelledCorpus
from distributed.processes.collectives import gather
from distributed.processes.topology import Topology
from pupujepa.progress import Progress

LIST = "audio-digests.json"
_SETTLED_NS = 10 * 10**9
_READERS = 4


def with_audio_digests(corpus: LabelledCorpus, *, cache: Location | Path, topology: Topology) -> LabelledCorpus:
    """Returns the corpus with digests that depend on every byte of its audio; all ranks call it together."""
    digests = audio_digests([t.path for t in corpus.tracks], cache=cache, topology=topology)
    own = {t.uid: digests[str(t.path)] for t in corpus.tracks}
    fingerprints = {uid: f"{print_}/{own[uid]}" for uid, print_ in corpus.fingerprints.items() if uid in own}
    digest = sha256(f"{corpus.digest}/{json.dumps(sorted(own.items()))}".encode()).hexdigest()
    return replace(corpus, digest=digest, fingerprints=fingerprints)


def audio_digests(
    paths: Sequence[Path],
    *,
    cache: Location | Path,
    topology: Topology,
    clock_ns: Callable[[], int] = time.time_ns,
) -> dict[str, str]:
    """Returns the sha256 of each file by path; all ranks call it together and each reads a share."""
    store = open_store(str(cache))
    try:
        known: dict[str, tuple[str, str]] = json.loads(store.read(LIST))  # (mark, digest) by path
    except MissingObjectError:
        known = {}
    mine = sorted({str(p) for p in paths})[topology.rank :: topology.world_size]  # every world_size-th file
    marks = {path: _mark(Path(path)) for path in mine}
    digests = {path: known[path][1] for path in mine if path in known and known[path][0] == marks[path]}
    unknown = [path for path in mine if path not in digests]
    with (
        Progress(len(unknown), title="digests of audio", unit="files", shown=topology.is_first) as progress,
        ThreadPoolExecutor(_READERS) as readers,
    ):
        for path, digest in zip(unknown, readers.map(_digest, unknown)):
            digests[path] = digest
            progress.advance()
    fresh = {p: (marks[p], digests[p]) for p in unknown if _is_settled(Path(p), marks[p], clock_ns())}
    shares = gather((digests, fresh), topology)
    learned = {path: found for _, share in shares for path, found in share.items()}
    # one writer: others would overwrite its list
    if topology.is_first and learned:
        store.write(LIST, json.dumps(known | learned).encode())
    return {path: digest for share, _ in shares for path, digest in share.items()}


def _mark(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _is_settled(path: Path, mark: str, now_ns: int) -> bool:
    """Returns True if the file has not changed since it was marked, nor shortly before."""
    return _mark(path) == mark and path.stat().st_ctime_ns < now_ns - _SETTLED_NS


def _digest(path: str) -> str:
    with Path(path).open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
